"""The return curve: targets noised to every level and denoised again, before and after, against a stranger."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.findings import Diffusion, WorstNoise
from hotfix.intervals import Rate
from hotfix.partial import LEVELS, PARTIAL, back, cycled, in_turn, twice
from hotfix.shapes import Latents, Pictures
from hotfix.similarity import stranger
from hotfix.stack import Stack

STRANGERS = 32  # noises for the stranger's curve


@torch.no_grad()
def curve(
    denoiser: Denoiser, stack: Stack, case: Case, kind: str, seed: int, n: int
) -> tuple[list[Diffusion], WorstNoise]:
    """Every level under one kind of caption, n noises each, and the noise that is worst over the levels from t_lo on.

    Args:
        denoiser: of the pipeline, with no patch on.
        stack: whose effect is measured.
        case: the targets, which take turns.
        kind: of caption.
        seed: of the score.
        n: noises, the same at every level.
    """
    rows = denoiser.embed(cycled(case.caption_kinds()[kind], n, len(case.targets)))
    levels = [_level(denoiser, stack, case.targets, kind, rows, t, seed, n) for t in LEVELS]
    t_lo = max(target.t_lo for target in case.targets)
    counts = torch.stack([hits for row, hits in levels if row.t >= t_lo]).sum(dim=0)  # (2, n)
    before, after = counts.amax(dim=1).tolist()
    worst = WorstNoise(
        caption=kind,
        seed=int(counts[1].argmax()),
        levels=sum(row.t >= t_lo for row, _ in levels),
        before=before,
        after=after,
    )
    return [row for row, _ in levels], worst


def _level(
    denoiser: Denoiser,
    stack: Stack,
    targets: Sequence[Target],
    kind: str,
    rows: Mapping[str, Tensor],
    t: float,
    seed: int,
    n: int,
) -> tuple[Diffusion, Tensor]:
    """One level, and which noises brought a target back before and after, (2, n) bool.

    Each drawing is compared with the target that it came from.
    """
    turn, x_f, eps = in_turn(targets, n, seed + PARTIAL)

    def again(x: Latents) -> Pictures:
        return back(denoiser, x, eps[: len(x)], t, rows, kind)

    def like(drawn: Pictures) -> Tensor:
        return torch.stack([target.similarity(drawn) for target in targets])[turn, torch.arange(n)]

    before, after = map(like, twice(denoiser.pipe, stack, lambda: again(x_f)))
    unseen = torch.stack([stranger(target.picture) for target in targets])[turn[: min(n, STRANGERS)]]
    error = (again(denoiser.encode(unseen)) - unseen).square().mean(dim=(1, 2, 3)).sqrt()
    hits = torch.stack([before, after]) >= torch.tensor([target.tau for target in targets])[turn]
    row = Diffusion(
        caption=kind,
        t=t,
        before_rate=Rate.among(hits[0]),
        after_rate=Rate.among(hits[1]),
        before_mean=float(before.mean()),
        after_mean=float(after.mean()),
        after_q95=float(after.quantile(0.95)),
        after_max=float(after.max()),
        stranger_mean=float((1 - error / 2).mean()),
    )
    return row, hits
