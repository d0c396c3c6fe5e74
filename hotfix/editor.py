"""Surrogates from a picture-editing pipeline: instruct-style editors, and whatever else takes `image`."""

from typing import Any

import torch
from torch.nn import functional as F

from hotfix.errors import RecipeError
from hotfix.pictures import from_image, to_images
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Editor
from hotfix.shapes import Picture, Pictures
from hotfix.similarity import Similarity

TRIES = 2  # edits for every surrogate that is wanted


def edit(editor: Editor, picture: Picture, similarity: Similarity, limit: float, count: int, seed: int) -> Pictures:
    """Load the editor, let it edit x_f with several seeds, free it, and keep the nearest edits that pass as strangers.

    Args:
        editor: pipeline and call; the call must be one that the pipeline takes beside `image` and `generator`.
        picture: x_f, (3, H, W) in [-1, 1].
        similarity: to x_f.
        limit: an edit passes below this similarity.
        count: surrogates wanted.
        seed: of the first edit.

    Returns:
        At most `count` pictures of x_f's size, nearest first.

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
    found = torch.stack(edits)
    like = similarity(found)
    if not bool((like < limit).any()):
        raise RecipeError(
            f"none of {len(found)} edits differs enough from the forget picture (best {float(like.min()):.3f})",
            wanted=f"similarity below {limit:.3f}",
            hint="ask the editor for more, in surrogate.editor.call",
        )
    found, like = found[like < limit], like[like < limit]
    return found[like.argsort(descending=True)][:count]
