"""Where pipelines come from: a bundled base (`hotfix:flags`), a folder, or a Hub id at a commit."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hotfix import cost, fewer_bits, hub
from hotfix.errors import HotfixError
from hotfix.recipe import Base, Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BUNDLED = "hotfix:"
LOCAL = (".", "/", "~")  # how what can only be a path begins


def named(text: str) -> tuple[str, str]:
    """Take `HUB/ID@COMMIT` apart: a pipeline and its revision. The name of a folder may have an @ in it."""
    if Path(text).exists() or text.startswith(LOCAL):
        return text, ""
    name, _, revision = text.partition("@")
    return name, revision


def folder(source: str) -> Path | None:
    """The local folder of a pipeline, or None for a Hub id.

    Raises:
        HotfixError: a bundled base that does not exist, or a path without a pipeline in it.
    """
    if source.startswith(BUNDLED):
        bases = Path(str(files("hotfix"))) / "bases"
        path = bases / source.removeprefix(BUNDLED)
        if not (path / "model_index.json").is_file():
            known = ", ".join(f"hotfix:{p.parent.name}" for p in sorted(bases.glob("*/model_index.json")))
            raise HotfixError(f"there is no bundled base {source!r}", wanted=known, hint="or name a folder or a Hub id")
        return path
    path = Path(source)
    if path.exists() or source.startswith(LOCAL):
        if not (path / "model_index.json").is_file():
            raise HotfixError(
                f"{source} holds no model_index.json",
                wanted="a folder that save_pretrained wrote",
                hint="a single-file checkpoint has to be converted first, with diffusers' from_single_file",
            )
        return path
    return None


def locate(source: str, revision: str = "") -> Path | None:
    """The local folder of a pipeline, or None for a Hub id at a commit. Imports no torch.

    Raises:
        HotfixError: nothing there, a Hub id without a commit, or a commit of what is not on the Hub.
    """
    local = folder(source)
    if local is None and not hub.COMMIT.fullmatch(revision):
        raise HotfixError(
            f"{source!r} is no folder here, and as a Hub id it needs a commit"
            + (f", not {revision!r}" if revision else ""),
            hint=f"the 40 hex digits of a commit, as base.revision or {source}@COMMIT: branches move",
        )
    if local is not None and revision:
        hint = "leave the revision out; of the Hub's, name it where no folder has that name"
        raise HotfixError(f"{source} is on this machine, and has no revision {revision!r}", hint=hint)
    return local


def load_pipeline(
    source: "str | Recipe | Base",
    *,
    revision: str = "",
    dtype: Any = None,
    bits: Literal[4, 8] | None = None,
    offload: bool = False,
    device: Any = "cpu",
    split: bool = False,
) -> "DiffusionPipeline":
    """Load a diffusers pipeline, in float32 unless told otherwise, from safetensors files only.

    Args:
        source: `hotfix:NAME`, a folder, a Hub id, a recipe or its `base`.
        revision: for a Hub id, the 40 hex digits of a commit.
        dtype: a torch dtype; without one, the recipe's, or float32.
        bits: of the weights of the denoiser, if fewer (`hotfix.fewer_bits`); without any, the recipe's.
        offload: whether its parts wait in host memory until they are asked (`hotfix.offload`), or as the recipe says.
        device: where to put it. The command line takes the accelerator of its process, if there is one.
        split: whether the processes of a launch, all of which load it, share the denoiser's weights out
            (`hotfix.sharded`).

    Raises:
        HotfixError: nothing there, a Hub id without a commit, more weights than memory is free, or what fewer bits,
            splitting up or the recipe's `train.compile` need is missing.
    """
    backend = ""
    if isinstance(source, Recipe):
        source, backend = source.base, source.train.compile
    name = "float32"
    if isinstance(source, Base):
        name, bits, offload = source.dtype, bits or source.bits, offload or source.offload
        source, revision = source.pipeline, source.revision
    if split and bits:
        raise HotfixError(f"base.bits = {bits} on a base that is split up", hint="one of the two: leave out base.bits")
    if split and offload:
        raise HotfixError("base.offload on a base that is split up", hint="one of the two: leave out base.offload")
    local = locate(source, revision)
    import torch
    from diffusers import DiffusionPipeline

    from hotfix import compiled

    compiled.check(backend)
    if split and not torch.distributed.is_initialized():
        raise HotfixError(
            "there are no other processes to split the base up among", hint="accelerate launch --use_fsdp"
        )
    dtype = dtype or getattr(torch, name)
    options = {"dtype": dtype, "use_safetensors": True}
    if bits:
        options["quantization_config"] = fewer_bits.config(bits, dtype, torch.device(device))
    if local is not None:
        smaller = "load it in a smaller type, hotfix.load_pipeline(…, dtype=torch.bfloat16), or on another machine"
        cost.room(f"{source} in {dtype}", size(local, dtype.itemsize, bits), cost.free(), "host", smaller)
    try:
        if local is not None:
            pipe = DiffusionPipeline.from_pretrained(local, local_files_only=True, **options)
        else:
            pipe = DiffusionPipeline.from_pretrained(source, revision=revision, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise HotfixError(f"cannot load the pipeline {source}: {first}", hint="check the path or the id") from error
    hint = 'base.offload = true, base.dtype = "bfloat16", accelerate launch --use_fsdp, or ACCELERATE_USE_CPU=1'
    with cost.enough(f"{source} in {dtype}", hint):
        if split:
            from hotfix.sharded import shard

            denoiser = next(getattr(pipe, name) for name in fewer_bits.DENOISERS if hasattr(pipe, name))
            shard(denoiser, torch.device(device))
        if torch.device(device).type == "cpu":
            return pipe  # where it is already
        if offload:
            pipe.enable_model_cpu_offload(device=device)
            return pipe
        return pipe.to(device)


def size(folder: Path, itemsize: int, bits: int | None = None) -> int:
    """Bytes that a saved pipeline takes in memory, from the headers of its files; variants do not count.

    Of a denoiser in fewer bits it is the least that it can take: what is not a Linear stays as it is.
    """
    files = [path for path in folder.glob("*/*.safetensors") if path.name.count(".") == 1]
    few = {path: bits / 8 for path in files if bits and path.parent.name in fewer_bits.DENOISERS}
    return sum(int(hub.numbers(path) * few.get(path, itemsize)) for path in files)


def prompts(source: str) -> list[str]:
    """The captions that a base knows, from `prompts.txt` in its folder; none if there is no such file."""
    local = folder(source)
    if local is None or not (local / "prompts.txt").is_file():
        return []
    return (local / "prompts.txt").read_text(encoding="utf-8").split("\n")[:-1]
