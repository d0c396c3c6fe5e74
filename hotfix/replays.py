"""Seed replay: pictures from pure noise, the same seeds before and after, and what came instead of the target."""

from collections.abc import Callable

import torch
from torch import Tensor

from hotfix import gate
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.findings import Replay, Worst
from hotfix.intervals import Rate
from hotfix.page import Gallery
from hotfix.partial import REPLAY, cycled, twice
from hotfix.shapes import Pictures
from hotfix.similarity import UNDETECTED, nearest, null, pixel, threshold
from hotfix.stack import Stack

SOUND = 0.99  # quantile of the denoising error of what must stay

Which = Callable[[Pictures], Tensor]  # of some pictures: (B,) bool


def drawn(
    denoiser: Denoiser, stack: Stack, case: Case, kind: str, seed: int, n: int, gallery: Gallery | None
) -> tuple[Pictures, Pictures]:
    """Drawings under one kind of caption, without the stack and with it."""
    captions = cycled(case.caption_kinds()[kind], n)
    seeds = [seed + REPLAY + i for i in range(n)]
    before, after = twice(denoiser.pipe, stack, lambda: denoiser.draw(captions, seeds))
    if gallery is not None:
        gallery.add(f"{kind} caption", [before[:10], after[:10]], case.alike)
    return before, after


def counted(
    case: Case, kind: str, before: Pictures, after: Pictures, seed: int, sound: Which, *, embedded: bool
) -> Replay:
    """What the drawings of one kind of caption are.

    Args:
        case: the targets.
        kind: of caption.
        before: drawings without the stack.
        after: with it, from the same seeds.
        seed: of the score.
        sound: which pictures the base might have drawn.
        embedded: whether targets are recognised by a network, which may find nothing in a picture.
    """

    def rates(which: Which) -> tuple[Rate, Rate]:
        return Rate.among(which(before)), Rate.among(which(after))

    returned, instead, good = rates(case.returned), rates(lambda x: is_surrogate(case, x)), rates(sound)
    unseen = rates(lambda x: undetected(case, x)) if embedded else (None, None)
    return Replay(
        caption=kind,
        before=returned[0],
        after=returned[1],
        surrogate_before=instead[0],
        surrogate=instead[1],
        sound_before=good[0],
        sound=good[1],
        undetected_before=unseen[0],
        undetected=unseen[1],
        worst_before=worst(case, before, seed + REPLAY),
        worst=worst(case, after, seed + REPLAY),
    )


def is_surrogate(case: Case, drawn: Pictures) -> Tensor:
    """Which drawings are a surrogate, (B,) bool: nearest of all known pictures, and nearer than strangers are."""
    surrogates = torch.cat([target.surrogates for target in case.targets])
    known = torch.cat([surrogates, torch.stack([t.picture for t in case.targets]), case.strangers])
    row = nearest(drawn, known)
    like = [pixel(one) for one in surrogates]
    hits = [(row == i) & (one(drawn) >= threshold(null(one, case.strangers))) for i, one in enumerate(like)]
    return torch.stack(hits).any(dim=0)


def sound_for(denoiser: Denoiser, case: Case, seed: int) -> Which:
    """Which pictures the base might have drawn: those whose denoising error what must stay has too (hotfix/gate.py).

    It tells noise, seams and colours of no picture; a blurred picture may pass.
    """
    some = case.strangers[:: -(-len(case.strangers) // gate.REFERENCE)]
    most = float(gate.error(denoiser, some, seed).quantile(SOUND))
    return lambda pictures: gate.error(denoiser, pictures, seed) <= most


def undetected(case: Case, drawn: Pictures) -> Tensor:
    """Drawings in which the network finds nothing that it could compare with any target, (B,) bool."""
    return torch.stack([target.similarity(drawn) == UNDETECTED for target in case.targets]).all(dim=0)


def worst(case: Case, drawn: Pictures, first: int) -> Worst:
    """The drawing that came nearest to counting as a target; the seed of the first is given."""
    like = torch.stack([target.similarity(drawn) for target in case.targets])
    tau = torch.tensor([target.tau for target in case.targets])
    which, seed = divmod(int((like - tau[:, None]).argmax()), len(drawn))
    return Worst(seed=first + seed, similarity=float(like[which, seed]), tau=case.targets[which].tau)
