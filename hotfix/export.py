"""Export: a patch in the layouts that other programs read. Pure: a patch in, the bytes of files out.

ΔW is the same in every layout, and alpha is the rank. In kohya's and peft's, all layers have one rank: where they
differ, stock diffusers misreads kohya's alphas, and some servers read one rank from peft's configuration. Every file
keeps the patch's id and manifest in its header: readers pass them over, and they say which patch it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotfix import container
from hotfix.errors import HotfixError, SaveError
from hotfix.patch import ID_KEY, MANIFEST_KEY, A, Patch, from_torch

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("kohya", "peft", "diffusers")
PEFT_PREFIX = "base_model.model."
PEFT_CONFIG = "adapter_config.json"


def export(patch: Patch, form: str) -> dict[str, bytes]:
    """The files of a patch in one of `FORMS`, by name.

    Raises:
        HotfixError: nothing reads this form of a patch for this base, or there is no such form.
    """
    base = patch.manifest.base
    if form == "merged":
        hint = "hotfix add PATCH, then hotfix apply PIPELINE -o DIR writes a patched copy of the pipeline"
        raise HotfixError("a patch alone cannot be merged: that takes its base", hint=hint)
    if form not in FORMS:
        raise HotfixError(f"there is no form {form!r}", wanted=", ".join(FORMS), hint="see docs/clients.md")
    if form == "peft":
        return _peft(patch)
    if form == "kohya":
        content = kohya(patch)
        if content is None:
            better = "diffusers" if _has_loader(base.pipeline_class) else "peft"
            raise HotfixError(
                f"there are no kohya keys for a {base.component_class}",
                wanted="a patch of a UNet2DConditionModel",
                hint=f"hotfix export PATCH --to {better}",
            )
        return {f"{patch.name}-{patch.version}_kohya.safetensors": content}
    if not _has_loader(base.pipeline_class):
        hint = "hotfix export PATCH --to peft: peft reads it onto the model itself"
        raise HotfixError(f"diffusers has no LoRA loader for a {base.pipeline_class}", hint=hint)
    return {"pytorch_lora_weights.safetensors": patch.dump()}


def kohya(patch: Patch) -> bytes | None:
    """The one file that every reader of UNet LoRAs knows, or None where the patch is not of a UNet2DConditionModel."""
    if patch.manifest.base.component_class != "UNet2DConditionModel":
        return None
    from diffusers.utils import convert_state_dict_to_kohya

    from hotfix.ranks import even

    converted = convert_state_dict_to_kohya(even(patch.tensors))
    # diffusers writes alpha as a whole number, which some readers cannot multiply with; kohya's own is a float.
    floats = {key: tensor.float() if key.endswith(".alpha") else tensor for key, tensor in converted.items()}
    return container.dump(_said(patch), from_torch(floats))


def _peft(patch: Patch) -> dict[str, bytes]:
    from hotfix.ranks import even

    component = f"{patch.manifest.base.component}."
    factors = {key.removeprefix(component): tensor for key, tensor in even(patch.tensors).items()}
    config = json.dumps(peft_config(factors), indent=2, sort_keys=True) + "\n"
    entries = from_torch({PEFT_PREFIX + key: tensor for key, tensor in factors.items()})
    return {"adapter_model.safetensors": container.dump(_said(patch), entries), PEFT_CONFIG: config.encode()}


def peft_config(factors: Mapping[str, "Tensor"]) -> dict[str, Any]:
    """What peft has to be told of factors of one rank: as little as every release of it understands. alpha = rank."""
    layers = sorted(key.removesuffix(A) for key in factors if key.endswith(A))
    rank = len(factors[layers[0] + A])
    config = {"r": rank, "lora_alpha": rank, "target_modules": layers, "bias": "none", "inference_mode": True}
    return {"peft_type": "LORA", **config}


def write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write all of them or none. What lies there already stays, unless it is the same.

    Raises:
        SaveError: another file is in the way, or the folder cannot be written.
    """
    paths = {folder / name: content for name, content in files.items()}
    new = {path: content for path, content in paths.items() if not path.exists()}
    for path in paths.keys() - new:
        try:
            same = path.read_bytes() == paths[path]
        except OSError:  # a folder, or not for us to read
            same = False
        if not same:
            raise SaveError(f"{path} is there already, and is something else", hint="name another folder with -o")
    written: list[Path] = []
    try:
        for path, content in new.items():
            container.write_atomically(path, content)
            written.append(path)
    except SaveError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return list(paths)


def _said(patch: Patch) -> dict[str, str]:
    return {"format": "pt", ID_KEY: patch.id, MANIFEST_KEY: patch.raw}


def _has_loader(pipeline_class: str) -> bool:
    import diffusers

    return hasattr(getattr(diffusers, pipeline_class, None), "load_lora_weights")
