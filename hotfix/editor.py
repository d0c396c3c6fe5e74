"""Surrogates from a picture-editing pipeline: instruct-style editors, and whatever else takes `image`."""

from typing import Any

import torch
from torch.nn import functional as F

from hotfix.errors import RecipeError
from hotfix.gate import Chosen, Gate
from hotfix.pictures import from_image, to_images
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Editor
from hotfix.shapes import Picture

TRIES = 2  # edits for every surrogate that is wanted


def edit(editor: Editor, picture: Picture, gate: Gate, count: int, seed: int) -> Chosen:
    """Load the editor, let it edit x_f with several seeds, free it, and keep the nearest that pass.

    Args:
        editor: pipeline and call; the call must be one that the pipeline takes beside `image` and `generator`.
        picture: x_f, (3, H, W) in [-1, 1].
        gate: what an edit must pass.
        count: surrogates wanted.
        seed: of the first edit.

    Raises:
        RecipeError: the pipeline does not take these arguments, or no edit passes.
    """
    pipe: Any = load_pipeline(editor.pipeline, revision=editor.revision)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    (image,) = to_images(picture[None])
    edits = []
    try:
        for i in range(TRIES * count):
            generator = torch.Generator("cpu").manual_seed(seed + i)
            edited = pipe(image=image, generator=generator, **editor.call).images[0].convert("RGB")
            edits.append(F.interpolate(from_image(edited)[None], picture.shape[-2:], mode="area")[0])
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"the editor {type(pipe).__name__} cannot be called so: {str(error).splitlines()[0]}",
            hint="surrogate.editor.call holds what the pipeline takes beside image and generator",
        ) from error
    finally:
        del pipe
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return gate.choose(torch.stack(edits), count, "edits", hint="ask the editor otherwise, in surrogate.editor.call")
