"""The flags under BentoML, with patches that can be changed while they are drawn.

HOTFIX_TOKEN=… HOTFIX_PATCHES=served bentoml serve --working-dir examples/serve --host 127.0.0.1 on_bentoml:Flags
"""

import bentoml
from app import flags


async def server(scope, receive, send):
    """What the service's worker has built."""
    await bentoml.get_current_service().server(scope, receive, send)


@bentoml.service(workers=1)  # one: each would have a stack of its own, and a change reaches the one that is asked
@bentoml.asgi_app(server)
class Flags:
    def __init__(self):
        self.server = flags()
