"""What must stay: same-seed pictures for other captions, before and after, in pixels and in the eyes of networks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.findings import Neighbours, Retain
from hotfix.intervals import Mean, Rate
from hotfix.networks import Networks, away, kid
from hotfix.page import Gallery
from hotfix.partial import KEEP, twice
from hotfix.shapes import PerExample, Pictures
from hotfix.similarity import nearest
from hotfix.stack import Stack

SAME_PICTURE = 0.03  # RMSE in units of [0, 1]: two captions with one picture
NEAR = 10  # neighbours that are looked at apart


def kept(
    denoiser: Denoiser, stack: Stack, case: Case, seed: int, n: int, gallery: Gallery | None, networks: Networks
) -> Retain:
    """Draw what must stay without the stack and with it, and say how far it moved.

    Args:
        denoiser: of the pipeline, with no patch on.
        stack: whose effect is measured.
        case: says what must stay; what the base draws as a target is left out, unless other captions may have it.
        seed: of the score.
        n: pictures at most; of more captions some are drawn that lie evenly among them.
        gallery: filled with some of the pictures, if given.
        networks: what else looks at the pictures.

    Raises:
        HotfixError: nothing that was drawn may stay.
    """
    captions = list(dict.fromkeys(filter(None, case.retain_captions)))
    named = bool(captions)
    captions = captions or [""] * len(case.retain_captions)  # the base draws what it likes, from as many seeds
    every = -(-len(captions) // n)
    seeds = [seed + KEEP + i for i in range(0, len(captions), every)]
    count, captions = len(captions), captions[::every]
    before, after = twice(denoiser.pipe, stack, lambda: denoiser.draw(captions, seeds))
    stays = ~case.returned(before) if case.scope == "any" else torch.ones(len(before), dtype=torch.bool)
    if not stays.any():
        raise HotfixError("every picture that was drawn as one that must stay is a target", hint="draw more: -n 300")
    before, after = before[stays], after[stays]
    captions = [caption for caption, keep in zip(captions, stays.tolist(), strict=True) if keep]
    if gallery is not None:
        gallery.add("what must stay", [before[:20], after[:20]], case.alike)
    like = torch.stack([target.similarity(before) for target in case.targets]).amax(dim=0)
    near = like.topk(min(NEAR, len(before))).indices
    error = (after - before).square().mean(dim=(1, 2, 3)) / 4  # of pixels in [0, 1]
    rmse = error.sqrt()
    unlike = 1 - torch.atleast_1d(ssim((after + 1) / 2, (before + 1) / 2, reduction="none", data_range=1.0))
    found: dict[str, Any] = {}
    rates: dict[str, Rate] = {}
    if named:
        own = case.retain[[case.retain_captions.index(caption) for caption in captions]]
        was, now = (right(drawn, own, case.retain) for drawn in (before, after))
        found = {"before": Rate.among(was), "after": Rate.among(now)}
        found["lost"] = [caption for caption, lost in zip(captions, (was & ~now).tolist(), strict=True) if lost]
        rates = {"before": Rate.among(was[near]), "after": Rate.among(now[near])}

    def elsewhere() -> Pictures:
        """The base's, for the same captions from seeds of their own: an independent sample."""
        return denoiser.draw(captions, [seed + KEEP + count + i for i in range(len(captions))])

    return Retain(
        n=len(before),
        drift_rmse=float(rmse.mean()),
        drift_ssim=float(unlike.mean()),
        rmse_interval=Mean.of(rmse.tolist()).interval,
        ssim_interval=Mean.of(unlike.tolist()).interval,
        **_psnr(error),
        neighbours=Neighbours(n=len(near), drift=Mean.of(rmse[near].tolist()), **rates),
        networks=dict(networks.named),
        **_seen(networks, before, after, captions, elsewhere),
        **found,
    )


def right(drawn: Pictures, own: Pictures, known: Pictures) -> Tensor:
    """Which are nearest to the base's picture for their caption, or to one that looks the same (many flags do)."""
    found = known[nearest(drawn, known)]
    return (found - own).square().mean(dim=(1, 2, 3)).sqrt() / 2 < SAME_PICTURE


def _psnr(error: PerExample) -> dict[str, Any]:
    """Of mean squared errors: the signal-to-noise ratio in dB, where there is any noise."""
    mean = Mean.of(error.tolist())
    if not mean.value:
        return {}
    low, high = mean.interval or (0.0, 0.0)
    return {
        "psnr": -10 * math.log10(mean.value),
        "psnr_interval": (-10 * math.log10(high), -10 * math.log10(low)) if low else None,
    }


def _seen(
    networks: Networks, before: Pictures, after: Pictures, captions: Sequence[str], elsewhere: Callable[[], Pictures]
) -> dict[str, Mean]:
    """What each network that is there sees."""
    found = {}
    if networks.features is not None:
        one, other, base = (networks.features(drawn) for drawn in (before, after, elsewhere()))
        found["feature_drift"] = Mean.of(away(one, other).tolist())
        found |= {"kid": kid(other, base), "kid_base": kid(one, base)}
    if networks.lpips is not None:
        found["lpips"] = Mean.of(networks.lpips(before, after).tolist())
    if networks.clip is not None:
        was, now = (networks.clip(drawn, captions) for drawn in (before, after))
        values = {"alignment_before": was, "alignment": now, "alignment_change": now - was}
        found |= {key: Mean.of(value.tolist()) for key, value in values.items()}
    return found
