"""The cheap test inside a build: on held-out noise, is the target as unlike its picture as a stranger yet?

And where a caption asks for the target: does its surrogate come instead?
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotfix import objective
from hotfix.bank import bank_steps
from hotfix.calibrate import Window
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser, sample
from hotfix.lora import Adapter
from hotfix.shapes import Latents, Picture, Pictures
from hotfix.similarity import nearest

NOISES = 12  # for every kind of caption and level,
MORE = 36  # and so many where those come close to the bar:
CLOSE = 0.05  # of similarity
STEPS = 8  # from pure noise; fewer from lower levels
INSTEAD = 0.95  # of the pictures drawn for the target's caption
LEFT = 0.25  # of the way from x_f to x_s: more, and what comes instead is a blend of both
BLUR = 0.01  # of similarity: a surrogate as it is drawn may lie so much nearer to x_f than itself
MARGIN = 0.02  # of similarity: so few noises know their own 95th percentile no better, and the next ones differ
LOWEST, HIGHEST = 0.3, 0.9  # levels are spread between these, or from t_lo where that is higher
HELD_OUT = 1_000_003  # added to the seed: noises that training never sees
DRIFT_ROWS = 8
DRIFT_TURNS = 4  # so many sets of them take turns: one alone is right for its own noises, not on average
BISECTIONS = 3


Where = tuple[str, float]  # a kind of caption and a noise level


@dataclass(frozen=True)
class _Part:
    """What is drawn and judged together: noises of one level, under one kind of caption."""

    x_t: Latents  # (NOISES + MORE, C, H, W)
    where: Where
    condition: Mapping[str, Tensor]
    guidance: float
    rightful: Tensor  # (NOISES + MORE,): so alike is what the caption asks for, or the surrogate
    whole: bool  # from pure noise, for the target's own caption: does the surrogate come?


@dataclass(frozen=True)
class _Bank:
    """What a trial knows of what must stay: asked once, because a similarity may be a network's."""

    alike: Tensor  # (1 + V, R): similarity of its pictures to the target's and to its views
    might: Tensor  # (R,) bool: what a model without the target might draw in its place


def failure(
    denoiser: Denoiser,
    target: Target,
    case: Case,
    conditions: Mapping[str, Mapping[str, Tensor]],
    window: Window,
    seed: int,
    suspect: Where | None = None,
) -> Where | None:
    """Under which kind of caption and from which noise level the target or one of its views fails; None if they pass.

    It ends at the first failure and begins with the suspect, so that a trial that fails where the last one did costs
    little. Every part has its own draws: their order changes nothing else. A dozen of them tell what is far from the
    bar; what comes close is drawn from four times as many.

    For every kind of caption and level the 95th percentile of the similarity to x_f after partial diffusion must lie
    below a bar; and, from pure noise under the target's own caption, 95% of the pictures must be nearest to a
    surrogate, three quarters of the way there on average. The bar is a margin below the stranger's 99th percentile, or
    where that is higher below the 95th of what an exact model of the bank and the surrogates would draw from the same
    states: from high noise a green flag may rightly become another green flag. Nor is it a failure to draw, however
    alike, what the caption asks for, or a surrogate. Where the target has views, they and the picture itself are noised
    in turn, and each drawing is compared with the one that it came from.

    Args:
        denoiser: with the patch that is tried.
        target: what must not come out.
        case: the bank.
        conditions: kind of caption -> condition rows.
        window: for its t_lo.
        seed: of the noise.
        suspect: what is tried first.
    """
    generator = torch.Generator().manual_seed(seed + HELD_OUT)
    looks, turn = _looks(target)
    x = torch.cat([look.x_f for look in looks])[turn.to(target.x_f.device)]
    bank = _Bank(torch.stack([look.similarity(case.retain) for look in looks]), case.instead(target))
    low = max(window.t_lo, LOWEST)
    high = max(low, HIGHEST)
    parts = []
    for kind, condition in reversed(list(conditions.items())):  # its own last: guidance costs twice
        own = kind == "own"
        rightful = _rightful(target, case.retain_captions, bank.alike[0], case.forget_kinds()[kind])
        for level in (*([1.0] if own else []), high, (low + high) / 2, low):
            eps = torch.randn(x.shape, generator=generator).to(x.device)
            rows, pick = sample(condition, len(x), generator)
            x_t = denoiser.noised(x, torch.full((len(x),), level, device=x.device), eps)
            guidance = denoiser.guidance if own else 1.0
            parts.append(_Part(x_t, (kind, level), rows, guidance, rightful[pick], own and level == 1.0))
    parts.sort(key=lambda part: part.where != suspect)  # a stable sort
    return next((part.where for part in parts if not _passes(denoiser, target, case, bank, part)), None)


def _looks(target: Target) -> tuple[tuple[Target, ...], Tensor]:
    """The picture and its views, and which of them every noise is for: they take turns."""
    looks = (target, *target.views)
    return looks, torch.arange(NOISES + MORE) % len(looks)


def _bar(denoiser: Denoiser, target: Target, case: Case, bank: _Bank, part: _Part) -> Tensor:
    """So alike to the picture that was noised may 95% of the drawings be, and no more, (NOISES + MORE,)."""
    looks, turn = _looks(target)
    surrogates = torch.cat([look.surrogates for look in looks])
    instead = torch.cat(
        [torch.stack([look.similarity(surrogates) for look in looks]), bank.alike[:, bank.might]], dim=1
    )
    x_instead = torch.cat([*(look.x_s for look in looks), case.x_r[bank.might.to(case.x_r.device)]])
    t = torch.full((len(part.x_t),), part.where[1], device=part.x_t.device)
    odds = objective.posterior(part.x_t, x_instead, *denoiser.schedule(t)).cpu()
    usual = torch.tensor([look.null for look in looks])
    above = objective.left_out(odds, (instead - usual[:, None])[turn])
    return torch.maximum(usual[turn] + max(0.0, above) - MARGIN, part.rightful + BLUR)


def _passes(denoiser: Denoiser, target: Target, case: Case, bank: _Bank, part: _Part) -> bool:
    """Whether its drawings stay below their bar, and from pure noise are the surrogate."""
    looks, turn = _looks(target)
    bar = _bar(denoiser, target, case, bank, part)
    _, level = part.where

    def draw(some: slice) -> Pictures:
        rows = {key: value[some] for key, value in part.condition.items()}
        steps = math.ceil(STEPS * level)
        clean = denoiser.denoise(part.x_t[some], level, rows, steps=steps, guidance=part.guidance)
        return denoiser.decode(clean).cpu()

    def over(drawn: Pictures) -> float:
        row = torch.arange(len(drawn))
        like = torch.stack([look.similarity(drawn) for look in looks])[turn[row], row]
        return float((like - bar[row]).quantile(0.95))

    drawn = draw(slice(NOISES))
    excess = over(drawn)
    if abs(excess) < CLOSE:
        drawn = torch.cat([drawn, draw(slice(NOISES, None))])
        excess = over(drawn)
    return excess <= 0 and (not part.whole or _turned(target, case.retain[bank.might], drawn))


def _turned(target: Target, instead: Pictures, drawn: Pictures) -> bool:
    """Whether a surrogate comes, and not another picture that might come instead, or a blend of it and the target."""
    looks, _ = _looks(target)
    surrogates = torch.cat([look.surrogates for look in looks])
    others = [instead, *(look.picture[None] for look in looks)]
    share = (nearest(drawn, torch.cat([surrogates, *others])) < len(surrogates)).float().mean()
    return float(share) >= INSTEAD and _left(drawn, surrogates, target.picture) <= LEFT


def _rightful(target: Target, known: Sequence[str], like: Tensor, captions: Sequence[str]) -> Tensor:
    """How alike to x_f a drawing for each caption may be: as its own picture in the bank, or as the surrogate.

    The bank is given by its captions and the similarity of its pictures.
    """
    instead = float(target.similarity(target.surrogates).max())
    alike: dict[str, float] = {}
    for caption, one in zip(known, like.tolist(), strict=True):
        alike[caption] = max(one, alike.get(caption, instead))
    return torch.tensor([alike.get(caption, instead) if caption else instead for caption in captions])


def _left(drawn: Pictures, surrogates: Pictures, x_f: Picture) -> float:
    """How much of the way from x_f to the nearest surrogate is left, on average: 0 is the surrogate itself."""
    left, row = torch.cdist(drawn.flatten(1), surrogates.flatten(1)).min(dim=1)
    return float((left / (surrogates - x_f).flatten(1).norm(dim=1)[row]).mean())


def smallest_strength(adapter: Adapter, passes: Callable[[], bool], *, whole: bool) -> tuple[float, bool]:
    """Bisect [0.5, 1] for the smallest strength that passes, and leave the adapter at it; 1 where even 1 does not.

    `whole` says that 1 is known to pass.

    Never above 1: amplified factors overshoot the surrogate, which costs more than the trial's last percent.
    """
    now = 1.0

    def passes_at(strength: float) -> bool:
        nonlocal now
        adapter.scale(strength / now)
        now = strength
        return passes()

    if not whole and not passes_at(1.0):
        return 1.0, False
    low, high = 0.5, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if passes_at(middle) else (middle, high)
    adapter.scale(high / now)
    return high, True


def held_out(
    denoiser: Denoiser, case: Case, rows: Mapping[str, Tensor], near_rows: Tensor, seed: int, turn: int
) -> Pictures:
    """Pictures of a few retain captions from held-out noise, half of them neighbours: drawn twice, they show drift.

    Every turn, from 0 to DRIFT_TURNS - 1, has captions and noises of its own.
    """
    generator = torch.Generator().manual_seed(seed + (2 + turn) * HELD_OUT)
    near = near_rows[torch.randint(len(near_rows), (DRIFT_ROWS // 2,), generator=generator)]
    pick = torch.cat([near, torch.randint(len(case.retain), (DRIFT_ROWS // 2,), generator=generator)])
    x_T = torch.randn((DRIFT_ROWS, *case.x_r.shape[1:]), generator=generator).to(case.x_r.device)
    condition = {k: v[pick.to(v.device)] for k, v in rows.items()}
    clean = denoiser.denoise(x_T, 1.0, condition, steps=bank_steps(denoiser), guidance=denoiser.guidance)
    return denoiser.decode(clean).cpu()


def drift(drawn: Pictures, base: Pictures) -> float:
    """Mean same-seed RMSE of pixels in [0, 1]."""
    return float((drawn - base).square().mean(dim=(1, 2, 3)).sqrt().mean()) / 2
