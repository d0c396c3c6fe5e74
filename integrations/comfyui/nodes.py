"""The node "Apply hotfix stack": the patches of a hotfix.lock for a MODEL, through ComfyUI's own ModelPatcher."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
from server import PromptServer

from hotfix import lock as locks
from hotfix.errors import HostError, HotfixError
from hotfix.patch import Patch

from .placing import MARK, carried, describe, place_all


def put_on(model: Any, stack: Sequence[Patch], allow_related_base: bool = False) -> tuple[Any, str]:
    """A clone of a ModelPatcher with a stack on, and what is on in words. Twice is once.

    Raises:
        HotfixError: a patch does not fit, or not every layer of it could be put on. The model is as it was.
    """
    before = carried(model.patches)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    placed = place_all(stack, known, model.get_key_patches("diffusion_model."), before, allow_related_base)
    patched = model.clone()
    for patch, places, _ in placed:
        if patch.id not in before:
            changes = comfy.lora.load_lora(patch.tensors, places, log_missing=False)
            for change in changes.values():
                setattr(change, MARK, patch)
            patched.add_patches(changes)
    after = carried(patched.patches)
    if lost := [patch.name for patch in stack if patch.id not in after]:
        raise HostError(f"ComfyUI did not take {', '.join(lost)}", hint="this release of it is not supported")
    return patched, describe(placed)


class ApplyHotfixStack:
    """Reads a lock, checks every patch and the model's weights, and puts all of it on or raises."""

    CATEGORY = "hotfix"
    DESCRIPTION = "Puts the patches of a hotfix.lock on a model, after checking their ids and the model's weights."
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "status")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "lock": (
                    "STRING",
                    {"default": locks.LOCK, "tooltip": "A hotfix.lock: a path, or one relative to models/hotfix."},
                ),
            },
            "optional": {
                "allow_related_base": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Also take weights that are only like those of the patches' base."},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, lock: str, **_: Any) -> str:
        return hashlib.sha256(_path(lock).read_bytes()).hexdigest()

    def apply(self, model: Any, lock: str, allow_related_base: bool = False, unique_id: str = "") -> dict[str, Any]:
        try:
            patched, status = put_on(model, locks.load(_path(lock)), allow_related_base)
        except HotfixError as error:
            raise RuntimeError(f"{error}\n\nhint: {error.hint}") from error
        PromptServer.instance.send_progress_text(status, unique_id)
        return {"ui": {"text": [status]}, "result": (patched, status)}


def _path(lock: str) -> Path:
    return Path(folder_paths.models_dir, "hotfix", lock)


NODE_CLASS_MAPPINGS = {"ApplyHotfixStack": ApplyHotfixStack}
NODE_DISPLAY_NAME_MAPPINGS = {"ApplyHotfixStack": "Apply hotfix stack"}
