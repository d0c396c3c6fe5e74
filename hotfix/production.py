"""How production calls a pipeline: what the pipeline takes, what it takes for granted, and what hotfix says itself."""

import difflib
import inspect
import math
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union, get_args, get_origin

from hotfix.errors import RecipeError

# What `Denoiser.draw` says; every encoder is told the same caption.
SAID = {"batch_size", "class_labels", "generator", "num_images_per_prompt", "output_type", "return_dict"}
SAID |= {"prompt", "prompt_2", "prompt_3"}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "words"}


def usual(pipe: Any, argument: str) -> Any:
    """What a pipeline takes for an argument that its call leaves out."""
    return inspect.signature(pipe.__call__).parameters[argument].default


def steps(pipe: Any, call: Mapping[str, Any]) -> int:
    """Denoising steps of a production call."""
    return int(call.get("num_inference_steps", usual(pipe, "num_inference_steps")))


def said(call: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The call for so many captions: some pipelines want as many negative prompts beside them."""
    negative = {
        key: value for key, value in call.items() if key.startswith("negative_prompt") and isinstance(value, str)
    }
    return {**call, **{key: [value] * rows for key, value in negative.items()}}


def check(pipe: Any, call: Mapping[str, Any], token: int) -> None:
    """Refuse what the pipeline would refuse only when it draws, or pass over in silence.

    Args:
        pipe: a diffusers pipeline.
        call: how it is called in production.
        token: pixels; height and width are multiples of it.

    Raises:
        RecipeError: a key that the pipeline does not take, one that hotfix sets, or a value that is none of its kind.
    """
    taken = {
        name: one.annotation
        for name, one in inspect.signature(pipe.__call__).parameters.items()
        if one.kind is not inspect.Parameter.VAR_KEYWORD  # some swallow every other key with it
    }
    for key, value in call.items():
        if key in SAID:
            raise RecipeError(
                f"base.call.{key} is what hotfix says itself, of every picture that it draws",
                hint="leave it out; captions are named in forget.captions and retain.prompts",
            )
        if key not in taken:
            near = difflib.get_close_matches(key, sorted(taken.keys() - SAID), n=1)
            raise RecipeError(
                f"base.call.{key}: a {type(pipe).__name__} takes no such key",
                hint=f"did you mean {near[0]!r}?" if near else "leave it out",
            )
        if not _is_one(value, kinds := _kinds(taken[key])):
            words = [WORDS[kind] for kind in WORDS if kind in kinds]
            wanted = " or ".join(words) or "nothing: what it takes there cannot be said in a recipe"
            raise RecipeError(
                f"base.call.{key} is {value!r}", wanted=wanted, hint=f"correct or leave out base.call.{key}"
            )
        if key in ("height", "width") and (value < token or value % token):
            hint = f"base.call.{key} = {max(1, round(value / token)) * token}"
            raise RecipeError(f"base.call.{key} is {value}", wanted=f"a multiple of {token} pixels", hint=hint)


def _kinds(annotation: Any) -> set[Any]:
    """Which kinds of value an argument takes, of those that a recipe can say; all of them where it is not declared."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return set(WORDS)
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return {part for part in parts if part in WORDS}


def _is_one(value: Any, kinds: set[Any]) -> bool:
    match value:
        case bool():
            return bool in kinds
        case int():
            return bool(kinds & {int, float}) or (bool in kinds and value in (0, 1))  # as a recipe keeps true and false
        case float():
            return float in kinds and math.isfinite(value)
        case str():
            return str in kinds
        case _:  # from Python, where more can be said
            return True


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No progress bar for every batch, and the pipeline's own setting back afterwards."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    had = hasattr(pipe, "_progress_bar_config")
    pipe.set_progress_bar_config(**before | {"disable": True})
    try:
        yield
    finally:
        if had:
            pipe._progress_bar_config = before
        else:
            del pipe._progress_bar_config
