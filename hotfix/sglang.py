"""SGLang-Diffusion, by its own LoRA requests: /v1/list_loras, /v1/set_lora, /v1/unmerge_lora_weights (0.5.23).

A single adapter is computed beside the weights ("dynamic"). Several can only be merged into them, in the dtype that
they are served in: refused where rounding would lose too much of a patch. The server's own adapters stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotfix.ask import asked
from hotfix.errors import ServerError, StackError
from hotfix.patch import Patch

TARGET = "transformer"  # of a second one, as some video models have, hotfix knows nothing
MODES = {"unmerged": "dynamic", "merged": "merge"}  # as they are listed, and as they are asked for
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
STRENGTH = 1.0
MARK = "+hotfix."  # in an adapter's name, before the beginning of the patch's id


@dataclass(frozen=True)
class Adapter:
    """One LoRA as the server knows it."""

    name: str
    path: str
    strength: float


@dataclass(frozen=True)
class State:
    """What is on, in order, and how."""

    adapters: tuple[Adapter, ...] = ()
    mode: str = "dynamic"


def state(server: str) -> State:
    """What is on. Raises ServerError where the server lists it in a way that hotfix does not know."""
    said = asked(server, "GET", "/v1/list_loras")
    try:
        paths = {one["nickname"]: one["path"] for one in said["loaded_adapters"]}
        if TARGET not in said["active"]:
            return State()
        (on,) = said["active"][TARGET]
        adapters = zip(on["nicknames"], on["strengths"], strict=True)
        return State(tuple(Adapter(name, paths[name], float(weight)) for name, weight in adapters), MODES[on["mode"]])
    except (KeyError, TypeError, ValueError) as error:
        hint = "hotfix knows sglang 0.5.23; put the patches on with its own requests"
        raise ServerError(f"{server} lists its adapters in another way ({error})", hint=hint) from error


def on(server: str) -> list[tuple[str, str, str]]:
    """Name, version and the beginning of the id of every patch that is on; behind it, how, where not as `put` puts it.

    One that somebody has set to 0 is listed as ever, and does nothing.
    """
    found = state(server)
    usual = "merge" if len(found.adapters) > 1 else "dynamic"
    rows = []
    for one in found.adapters:
        known, mark, digits = one.name.rpartition(MARK)
        how = "" if (one.strength, found.mode) == (STRENGTH, usual) else f" {found.mode} at {one.strength:g}"
        if mark:
            rows.append((*known.rpartition("-")[::2], f"sha256:{digits}{how}"))
    return rows


def put(server: str, patches: Sequence[Patch], folder: Path | None) -> None:
    """Put these on, and nothing else of hotfix.

    Args:
        server: its address.
        patches: in stack order.
        folder: of the files as the server sees it; None where it sees them as this machine does.

    Raises:
        StackError: a patch of a component that the server has no adapters for, one that would not survive, or two that
            would be one file there.
        ServerError: the server refused, or did not do it. What was on before is on.
    """
    for patch in patches:
        if (component := patch.manifest.base.component) != TARGET:
            hint = "SGLang has adapters for no other component"
            raise StackError(f"{patch.name} {patch.version} patches the {component}", wanted=TARGET, hint=hint)
    ours = [_adapter(patch, folder) for patch in patches]
    _refuse_one_file(ours)
    before = state(server)
    adapters = (*(one for one in before.adapters if MARK not in one.name), *ours)
    mode = "merge" if len(adapters) > 1 else "dynamic" if patches else before.mode
    if mode == "merge":
        _refuse_rounding(server, patches)
    wanted = State(adapters, mode) if adapters else State()
    try:
        _set(server, wanted)
        if state(server) != wanted:
            raise ServerError(f"{server} says that it did, and lists something else", hint="see its log")
    except ServerError as error:
        try:
            if state(server) != before:
                _set(server, before)
        except ServerError as second:
            hint = "what was on before could not be put back: do not let it draw"
            raise ServerError(f"{error}; {second}", hint=hint) from second
        raise


def _adapter(patch: Patch, folder: Path | None) -> Adapter:
    assert patch.source is not None  # it was read from a lock
    # In the Hub's cache all are called alike; `hotfix pull` is how they get into a folder.
    name = f"{patch.name}-{patch.version}.safetensors" if patch.pulled else patch.source.name
    path = folder / name if folder else patch.source.resolve()
    digits = patch.id.removeprefix("sha256:")[:12]
    return Adapter(f"{patch.name}-{patch.version}{MARK}{digits}", path.as_posix(), STRENGTH)


def _refuse_one_file(adapters: Sequence[Adapter]) -> None:
    """The server lists names, not what it read: two patches of one file would look like both."""
    names: dict[str, str] = {}
    for one in adapters:
        if (other := names.setdefault(one.path, one.name)) != one.name:
            raise StackError(
                f"{other.rpartition(MARK)[0]} and {one.name.rpartition(MARK)[0]} would both be {one.path} there",
                wanted="a file for each",
                hint="call them NAME-VERSION.safetensors, in the folder and where the lock finds them",
            )


def _refuse_rounding(server: str, patches: Sequence[Patch]) -> None:
    from hotfix.fold import LEAST_SURVIVAL  # torch, which a machine that only sends requests does without

    models = asked(server, "GET", "/v1/models").get("data") or [{}]
    dtype = DTYPES.get(models[0].get("dit_precision", ""), "an unknown dtype")
    for patch in patches:
        left = 1.0 if dtype == "float32" else patch.manifest.merge_survival.get(dtype)
        if left is None or left < LEAST_SURVIVAL:
            known = "nobody knows how much" if left is None else f"{left:.0%}"
            raise StackError(
                f"SGLang merges several adapters, and {known} of {patch.name} {patch.version} would survive in {dtype}",
                wanted=f"at least {LEAST_SURVIVAL:.0%}",
                hint="hotfix merge makes one patch of them, which SGLang computes beside the weights",
            )


def _set(server: str, wanted: State) -> None:
    if not wanted.adapters:
        asked(server, "POST", "/v1/unmerge_lora_weights", {"target": TARGET})
        return
    request = {
        "lora_nickname": [one.name for one in wanted.adapters],
        "lora_path": [one.path for one in wanted.adapters],
        "target": TARGET,
        "strength": [one.strength for one in wanted.adapters],
        "merge_mode": wanted.mode,
    }
    asked(server, "POST", "/v1/set_lora", request)
