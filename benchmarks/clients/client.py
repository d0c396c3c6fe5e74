"""What the scripts here share: a random patch with two ranks, in the form that a client reads, and the client's row.

Every script takes the folder of one client (made with `pip install --target FOLDER CLIENT==VERSION`, or a wheel that is
unpacked into it), lets its own code read an exported patch, and compares ΔW·x of every layer with hotfix's. A row goes
to benchmarks/results/clients.json, from which benchmarks/clients/table.py makes the table of docs/clients.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/clients.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

UNETS, DITS = ("sd15", "sdxl"), ("sd3", "flux")
LIMIT = 1e-5


def folder(about: str | None) -> Path:
    """The client's folder, from the command line; what lies in it is imported before anything else."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the client is")
    found = parser.parse_args().folder.resolve()
    sys.path.insert(0, str(found))
    return found


def released(where: Path, name: str) -> str:
    """The version of a client, from the metadata beside it."""
    from importlib.metadata import distributions

    found = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions(path=[str(where)])}
    return found[name]


def hollow(name: str, path: Path | None = None) -> None:
    """Stand in for a package that would import a whole server; its submodules under `path` are the real ones."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=path is not None)
    if path is not None:
        module.__path__ = [str(path)]
    module.__getattr__ = lambda attribute: MagicMock(name=f"{name}.{attribute}")  # type: ignore[method-assign]
    sys.modules[name] = module


def measured(
    families: Sequence[str],
    form: str,
    put_on: Callable[[Any, Any, list[Path]], Any],
    take_off: Callable[[Any, Any], Any] = lambda pipe, put: None,
) -> dict[str, Any]:
    """The largest difference of ΔW·x over all layers of all families, and whether every weight came back.

    Args:
        families: of tests/pico.py.
        form: of hotfix.export.
        put_on: called with the pipeline, its denoiser and the exported files; may return the model that carries them.
        take_off: called with the pipeline and what `put_on` returned.
    """
    import pico
    import torch
    from patching import denoiser, effect, two_ranks

    from hotfix import export
    from hotfix.stack import Stack

    worst, restored = 0.0, True
    for family in families:
        pipe, other = pico.HOSTS[family](), pico.HOSTS[family]()
        patch = two_ranks(pipe, "uneven")
        wanted = effect(other, patch, lambda: Stack.of(patch).apply(other))  # noqa: B023
        model, put = denoiser(pipe), []
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with tempfile.TemporaryDirectory() as out:
            paths = export.write(export.export(patch, form), Path(out))
            found = effect(pipe, patch, lambda: put.append(put_on(pipe, model, paths)) or put[0])  # noqa: B023
        take_off(pipe, put[0])
        worst = max([worst, *(float((found[name] - wanted[name]).abs().max()) for name in wanted)])
        after = denoiser(pipe).state_dict()
        restored &= after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    return {"families": list(families), "difference": worst, "restored": restored}


def row(client: str, version: str, form: str, how: str, **numbers: Any) -> None:
    """Print a row and keep it, in the place of an older one."""
    import diffusers
    import torch

    command = f"python benchmarks/clients/{Path(sys.argv[0]).name} FOLDER"
    about = {"client": client, "version": version, "form": form, "how": how}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    made = {**about, **numbers, **versions, "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command}
    print(json.dumps(made))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [one for one in kept if {key: one[key] for key in about} != about] + [made]
    from benchmarks.kept import write

    write(RESULTS, sorted(kept, key=lambda one: (one["client"].lower(), one["version"], one["form"], one["how"])))
