"""vLLM-Omni takes one adapter, with each request (0.30.0): there is no request that sets one for all.

So this writes the stack as one PEFT folder, exactly merged, and adapter.json: the field that whatever stands before the
server must put into every request. One that comes without it is drawn without the patches.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hotfix.container import write_atomically
from hotfix.errors import ServerError, StackError
from hotfix.export import PEFT_CONFIG, export
from hotfix.patch import Patch

FIELD = "adapter.json"
FILES = ("adapter_model.safetensors", PEFT_CONFIG)
NOT_WHOLE = "with its adapter changed or gone"


def on(folder: Path) -> list[tuple[str, str, str]]:
    """Name, version and id of every patch that the field in a folder stands for; behind it, where `put` must mend it.

    The adapter may have gone, or the folder been moved, or somebody have set another scale.
    """
    try:
        said = json.loads((folder / FIELD).read_text())
        rows = [(str(name), str(version), str(id_)) for name, version, id_ in said["patches"]]
        field = _field(folder.resolve(), [id_ for _, _, id_ in rows])
        whole = said["lora"] == field and all((Path(field["path"]) / name).is_file() for name in FILES)
        return [(name, version, id_ if whole else f"{id_} {NOT_WHOLE}") for name, version, id_ in rows]
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
    field = _field(folder.resolve(), [patch.id for patch in patches]) if patches else None
    if field:
        _write(Path(field["path"]), patches)
    rows = [(patch.name, patch.version, patch.id) for patch in patches]
    write_atomically(folder / FIELD, json.dumps({"lora": field, "patches": rows}, indent=1).encode())
    return {"lora": field}


def _field(folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    digits = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]
    name = f"hotfix-{digits}"  # the server keeps what it has read by its path: another stack, another path
    return {"name": name, "path": (folder / name).as_posix(), "scale": 1.0}


def _write(into: Path, patches: Sequence[Patch]) -> None:
    one = patches[0]
    for patch in patches:
        if any(len(entry.shape) != 2 for entry in patch.entries.values()):
            found = f"{patch.name} {patch.version} patches a convolution"
            raise StackError(found, wanted="linear layers", hint="vLLM-Omni has adapters for no other kind")
    if len(patches) > 1:
        from hotfix.merge import merge

        one = merge(patches, "hotfix", "1.0.0")
    for file, content in export(one, "peft").items():  # the server finds layers by names without the component, too
        write_atomically(into / file, content)
