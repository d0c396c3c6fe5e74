"""The subject beyond its forget pictures: do other pictures of it, which nothing was trained on, still come out?

Instance is not identity. A patch that holds for the pictures it was given says nothing about the next one of the same
face, so the recipe may hold some out, and only a score reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hotfix import embedding, pictures
from hotfix.calibrate import find_t_lo
from hotfix.case import Case, drawings
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.findings import HeldOut, Replay, Subject
from hotfix.intervals import Rate
from hotfix.partial import LEVELS, back, cycled, twice
from hotfix.recipe import Recipe
from hotfix.shapes import Latents, Picture, Pictures
from hotfix.similarity import Similarity, null, pixel, stranger, threshold
from hotfix.stack import Stack

KINDS = ("own", "empty")  # of captions that a held-out picture is denoised under
SEED = 40_000  # far from a build's and from what a score draws else but for attacks, whose noises may be the same


@dataclass(frozen=True)
class Known:
    """One held-out picture, and how to recognise it."""

    x: Latents  # (1, C, H, W)
    similarity: Similarity
    null: float  # as similar as a stranger
    tau: float  # from here on, a picture counts as this one
    t_lo: float  # below this noise level any picture survives


def held_out(recipe: Recipe, denoiser: Denoiser, case: Case) -> tuple[Known, ...]:
    """The recipe's held-out pictures, each with a threshold of its own; none if it names none.

    Raises:
        RecipeError: a picture that cannot be used, or one that is a forget picture.
    """
    if not recipe.forget.held_out:
        return ()
    shown = pictures.load(recipe.files(recipe.forget.held_out, "forget.held_out"), denoiser.size)
    if any(torch.equal(picture, target.picture) for picture in shown for target in case.targets):
        raise RecipeError(
            "forget.held_out names a forget picture",
            wanted="pictures of the subject that the patch is not trained on",
            hint="take it out of forget.images, or out of forget.held_out",
        )
    wanted = recipe.similarity
    embed = None if wanted.kind == "pixel" else embedding.embedder(wanted, recipe.place(wanted.path))
    captions = [caption for caption, twin in zip(case.retain_captions, case.twins.tolist(), strict=True) if not twin]

    def known(picture: Picture, seed: int) -> Known:
        strangers = case.strangers[~drawings(picture, captions, case.strangers)]
        similarity = pixel(picture) if embed is None else embedding.cosine(embed, picture)
        usual = null(similarity, strangers)
        tau = wanted.tau or threshold(usual)
        unseen = pixel(stranger(picture))
        t_lo = find_t_lo(denoiser, picture, unseen, threshold(null(unseen, strangers)), seed)
        return Known(denoiser.encode(picture[None]), similarity, usual, tau, t_lo)

    return tuple(known(picture, recipe.train.seed + i) for i, picture in enumerate(shown))


def hidden(case: Case, held: Sequence[Known]) -> Case:
    """The case whose pages show no drawing that is more like a held-out picture than strangers are."""
    return replace(case, held=tuple((one.similarity, min(one.null, one.tau)) for one in held))


def replay(held: Sequence[Known], caption: str, before: Pictures, after: Pictures) -> Replay:
    """How many drawings count as any of the held-out pictures."""

    def rate(drawn: Pictures) -> Rate:
        return Rate.among(torch.stack([one.similarity(drawn) >= one.tau for one in held]).any(dim=0))

    return Replay(caption=caption, before=rate(before), after=rate(after))


def measure(
    denoiser: Denoiser, stack: Stack, case: Case, held: Sequence[Known], replays: list[Replay], seed: int, noises: int
) -> Subject:
    """Noise every held-out picture to every level from its own t_lo on, and denoise it without and with the stack.

    Args:
        denoiser: of the pipeline, with no patch on.
        stack: whose effect is measured.
        case: whose captions are used: the target's own, and none.
        held: the pictures.
        replays: drawings from pure noise, counted already.
        seed: of the score.
        noises: at every level, for every picture and kind of caption.
    """
    rows = []
    kinds = {kind: captions for kind, captions in case.caption_kinds().items() if kind in KINDS}
    for number, one in enumerate(held, start=1):
        for kind, captions in kinds.items():
            condition = denoiser.embed(cycled(captions, noises))
            generator = torch.Generator().manual_seed(seed + SEED + number)
            for t in (level for level in LEVELS if level >= one.t_lo):
                eps = torch.randn((noises, *one.x.shape[1:]), generator=generator).to(one.x.device)
                rows.append(_row(denoiser, stack, one, number, kind, condition, eps, t))
    return Subject(pictures=len(held), replays=replays, diffusion=rows)


def words(found: Subject) -> str:
    """What a report lists among the attacks that were run."""
    levels = sum(row.before.n for row in found.diffusion if row.caption == found.captions[0])
    return (
        f"partial diffusion from held-out pictures of the subject: {found.pictures}, {levels} noises under each caption"
    )


def _row(
    denoiser: Denoiser,
    stack: Stack,
    one: Known,
    number: int,
    kind: str,
    condition: dict[str, Tensor],
    eps: Latents,
    t: float,
) -> HeldOut:
    x = one.x.expand_as(eps)
    drawn = twice(denoiser.pipe, stack, lambda: back(denoiser, x, eps, t, condition, kind))
    before, after = (Rate.among(one.similarity(pictures) >= one.tau) for pictures in drawn)
    return HeldOut(picture=number, tau=one.tau, caption=kind, t=t, before=before, after=after)
