"""The bank of what must stay: what the base draws for the prompts that it knows, and the user's pictures.

Where the base takes no captions the user's pictures stand alone. Where it does, they have none, and what it must draw
for other captions is kept beside them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hotfix import pictures, production
from hotfix.denoiser import Denoiser
from hotfix.errors import ForgetConflict, RecipeError
from hotfix.pipeline import prompts as known_prompts
from hotfix.recipe import Recipe
from hotfix.shapes import Pictures

STEPS = 25  # at most: in eight, pixel models draw softer and paler pictures than those that must stay
MOST_PROMPTS = 512  # each is drawn and kept; of the prompts that a base brings along, the first so many


def bank_captions(recipe: Recipe, denoiser: Denoiser) -> list[str]:
    """One for every picture of the bank, also of those that turn out to be a forget picture.

    Raises:
        RecipeError: too many prompts, none that is not a forget caption, or any of a base that takes none.
    """
    return [*drawn_captions(recipe, denoiser), *[""] * len(_given(recipe))]


def drawn_captions(recipe: Recipe, denoiser: Denoiser) -> list[str]:
    """Of the pictures that the base draws. They come first in the bank. Raises as `bank_captions`."""
    if not denoiser.captioned:
        if recipe.forget.captions or recipe.retain.prompts:
            raise RecipeError(
                f"a {denoiser.family} takes no captions, and the recipe names some",
                hint='leave out forget.captions, retain.prompts and scope = "caption"',
            )
        return [] if recipe.retain.images else [""] * recipe.retain.size
    if len(recipe.retain.prompts) > MOST_PROMPTS:
        raise RecipeError(
            f"retain.prompts names {len(recipe.retain.prompts)} captions",
            wanted=f"at most {MOST_PROMPTS}: every one is drawn",
            hint="keep those most like the target, which drift first, and a choice of the others",
        )
    names = recipe.retain.prompts or known_prompts(recipe.base.pipeline) or [""]
    names = [name for name in names if name not in recipe.forget.captions][:MOST_PROMPTS]
    if not names:
        raise RecipeError(
            "every prompt of what must stay is in forget.captions",
            wanted="one or more that draw something else",
            hint="name in retain.prompts what must stay",
        )
    return [names[i % len(names)] for i in range(max(recipe.retain.size, len(names)))]


def bank_steps(denoiser: Denoiser) -> int:
    """Denoising steps of a retain picture, and where drift is looked at: the production call's, up to a limit."""
    return min(STEPS, production.steps(denoiser.pipe, denoiser.call))


def bank_pictures(recipe: Recipe, denoiser: Denoiser) -> Pictures:
    """Retain pictures: the base's own drawings for those captions, and the user's."""
    given, captions = _given(recipe), drawn_captions(recipe, denoiser)
    shown = [pictures.load(given, denoiser.size)] if given else []
    return torch.cat([*([_drawn(recipe, denoiser, captions)] if captions else []), *shown])


def _given(recipe: Recipe) -> list[Path]:
    return recipe.files(recipe.retain.images, "retain.images")


def _drawn(recipe: Recipe, denoiser: Denoiser, captions: list[str]) -> Pictures:
    generator = torch.Generator().manual_seed(recipe.train.seed)
    shape = (len(captions), *denoiser.latent_shape)
    x_T = torch.randn(shape, generator=generator).to(denoiser.device)
    x_r = denoiser.denoise(x_T, 1.0, denoiser.embed(captions), steps=bank_steps(denoiser), guidance=denoiser.guidance)
    return denoiser.decode(x_r).cpu()


def asked_for(captions: Sequence[str], given: range) -> Tensor:
    """Which rows of the bank somebody asks for, by a caption or by giving the picture, (R,) bool."""
    return torch.tensor([bool(caption) or row in given for row, caption in enumerate(captions)])


def refuse_forgotten(recipe: Recipe, captions: Sequence[str], alike: Tensor, given: range) -> None:
    """Refuse a bank that holds a forget picture where somebody asks for it, or that holds nothing else.

    Args:
        recipe: with scope = "caption" the picture may be there under every caption but its own.
        captions: of every row.
        alike: which rows are a forget picture or a view of one, (R,) bool.
        given: rows that are the recipe's own pictures.

    Raises:
        ForgetConflict: a caption that the recipe does not name draws it, or retain.images names it.
        RecipeError: there is nothing else.
    """
    clashes = sorted({caption for caption, same in zip(captions, alike.tolist(), strict=True) if same and caption})
    views = " or a view of one" if recipe.train.augment else ""
    fewer = "; or name fewer kinds in train.augment" if views else ""
    if clashes and recipe.forget.scope == "any":
        named = ", ".join(repr(caption) for caption in clashes[:5])
        raise ForgetConflict(
            f"the base also draws a forget picture{views} for the caption {named}",
            wanted="a forget picture that no other caption needs",
            hint="if that drawing is wrong too, add the caption to forget.captions; if it is right, "
            f'suppress the picture under its own captions only: forget.scope = "caption"{fewer}',
        )
    if recipe.forget.scope == "any" and (shared := [row - given.start for row in given if alike[row]]):
        raise ForgetConflict(
            f"retain.images names a forget picture{views}: {_given(recipe)[shared[0]].name}",
            wanted="pictures that must stay and are none",
            hint=f"take it out of retain.images or out of forget.images{fewer}",
        )
    if alike.all():
        raise RecipeError(
            f"each of the {len(alike)} pictures of what must stay is a forget picture{views}",
            wanted="some that are not",
            hint="raise retain.size, or name pictures that must stay in retain.images",
        )
