"""vLLM-Omni takes one adapter, with each request (0.30.0): there is no request that sets one for all.

So this writes the stack as one PEFT folder, exactly merged, and adapter.json: the field that whatever stands before the
server must put into every request. One that comes without it is drawn without the patches.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hotfix.container import write_atomically
from hotfix.errors import ServerError, StackError
from hotfix.export import export
from hotfix.patch import Patch

FIELD = "adapter.json"


def on(folder: Path) -> list[tuple[str, str, str]]:
    """Name, version and id of every patch that the field in a folder stands for."""
    try:
        return [tuple(row) for row in json.loads((folder / FIELD).read_text())["patches"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{folder / FIELD} cannot be read ({error})", hint="remove it; sync writes another"
        ) from error


def put(folder: Path, patches: Sequence[Patch]) -> dict:
    """Write the adapter, then the field, so that a field never names an adapter that is not whole.

    Args:
        folder: that the server sees under the same path.
        patches: in stack order.

    Returns:
        The field: {"lora": {"name", "path", "scale"}}, or {"lora": None} without patches.

    Raises:
        StackError: patches that cannot be merged, or of convolutions.
        SaveError: the folder cannot be written. The field names what it named before.
    """
    field = {"lora": _adapter(folder.resolve(), patches) if patches else None}
    rows = [(patch.name, patch.version, patch.id) for patch in patches]
    write_atomically(folder / FIELD, json.dumps({**field, "patches": rows}, indent=1).encode())
    return field


def _adapter(folder: Path, patches: Sequence[Patch]) -> dict[str, str | float]:
    digits = hashlib.sha256(" ".join(patch.id for patch in patches).encode()).hexdigest()[:12]
    name = f"hotfix-{digits}"  # the server keeps what it has read by its path: another stack, another path
    into, one = folder / name, patches[0]
    for patch in patches:
        if any(len(entry.shape) != 2 for entry in patch.entries.values()):
            found = f"{patch.name} {patch.version} patches a convolution"
            raise StackError(found, wanted="linear layers", hint="vLLM-Omni has adapters for no other kind")
    if len(patches) > 1:
        from hotfix.merge import merge

        one = merge(patches, "hotfix", "1.0.0")
    for file, content in export(one, "peft").items():  # the server finds layers by names without the component, too
        write_atomically(into / file, content)
    return {"name": name, "path": into.as_posix(), "scale": 1.0}
