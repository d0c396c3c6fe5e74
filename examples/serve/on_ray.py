"""The flags under Ray Serve, with patches that can be changed while they are drawn.

HOTFIX_TOKEN=… HOTFIX_PATCHES=served python examples/serve/on_ray.py
"""

import os

from app import flags
from ray import serve

# Built in the replica. One of them: each would have a stack of its own, and a change reaches the one that is asked.
server = serve.deployment(num_replicas=1, max_ongoing_requests=32)(serve.ingress(flags)()).bind()

if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ.get("PORT", "8000"))})
    serve.run(server, blocking=True)
