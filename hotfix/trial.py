"""The cheap test inside a build: on held-out noise, is the target as unlike its picture as a stranger yet?

And where a caption asks for the target: does its surrogate come instead?
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hotfix import objective
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
MARGIN = 0.02  # of similarity: so few noises know their own 95th percentile no better
LOWEST, HIGHEST = 0.3, 0.9  # levels are spread between these, or from t_lo where that is higher
HELD_OUT = 1_000_003  # added to the seed: noises that training never sees
DRIFT_ROWS = 16
BISECTIONS = 3


def failure(
    denoiser: Denoiser,
    target: Target,
    case: Case,
    conditions: Mapping[str, Mapping[str, Tensor]],
    window: Window,
    seed: int,
    suspect: int | None = None,
) -> int | None:
    """The number of the part of a trial in which the target or one of its views fails; None if they pass.

    It ends at the first failure and begins with the suspect, so that a trial that fails where the last one did costs
    little. Every part has its own draws: their order changes nothing else.

    A dozen noises tell what is far from a bar; what comes close is drawn from four times as many.

    For every kind of caption and level the 95th percentile of the similarity to x_f after partial diffusion must lie
    below a bar; and, from pure noise under the target's own caption, 95% of the pictures must be nearest to a
    surrogate, three quarters of the way there on average. The bar is the stranger's 99th percentile less a margin, or
    where that is higher the 95th of what an exact model of the bank and the surrogates would draw from the same states:
    from high noise a green flag may rightly become another green flag. Nor is it a failure to draw, however alike, what
    the caption asks for, or a surrogate. Where the target has views, they and the picture itself are noised in turn,
    and each drawing is compared with the one that it came from.

    Args:
        denoiser: with the patch that is tried.
        target: what must not come out.
        case: the bank.
        conditions: kind of caption -> condition rows.
        window: for its t_lo.
        seed: of the noise.
        suspect: the part that is tried first.
    """
    generator = torch.Generator().manual_seed(seed + HELD_OUT)
    looks = (target, *target.views)
    turn = torch.arange(NOISES + MORE) % len(looks)
    x = torch.cat([look.x_f for look in looks])[turn.to(target.x_f.device)]
    surrogates = torch.cat([look.surrogates for look in looks])
    might = case.instead(target)
    instead = torch.cat([surrogates, case.retain[might]])
    x_instead = torch.cat([*(look.x_s for look in looks), case.x_r[might.to(case.x_r.device)]])
    usual = torch.tensor([look.null for look in looks])[turn]
    allowed = torch.stack([look.similarity(instead) - look.null for look in looks])[turn]
    rightful = {kind: _rightful(case, target, captions) for kind, captions in case.forget_kinds().items()}
    low = max(window.t_lo, LOWEST)
    high = max(low, HIGHEST)
    levels = [high, (low + high) / 2, low]
    parts = []
    for kind, condition in reversed(list(conditions.items())):  # its own last: guidance costs twice
        for level in (*([1.0] if kind == "own" else []), *levels):
            eps = torch.randn(x.shape, generator=generator).to(x.device)
            rows, pick = sample(condition, len(x), generator)
            own = torch.tensor([rightful[kind][row] for row in pick.tolist()])
            parts.append((kind, level, eps, rows, own))

    def passes(kind: str, level: float, eps: Latents, rows: dict[str, Tensor], own: Tensor) -> bool:
        t = torch.full((len(x),), level, device=x.device)
        x_t = denoiser.noised(x, t, eps)
        guidance = denoiser.guidance if kind == "own" else 1.0
        odds = objective.posterior(x_t, x_instead, *denoiser.schedule(t)).cpu()
        bar = torch.maximum(usual + max(-MARGIN, objective.left_out(odds, allowed)), own + BLUR)

        def draw(some: slice) -> Pictures:
            now = {key: value[some] for key, value in rows.items()}
            clean = denoiser.denoise(x_t[some], level, now, steps=math.ceil(STEPS * level), guidance=guidance)
            return denoiser.decode(clean).cpu()

        def over(drawn: Pictures) -> float:
            row = torch.arange(len(drawn))
            like = torch.stack([look.similarity(drawn) for look in looks])[turn[row], row]
            return float((like - bar[row]).quantile(0.95))

        drawn = draw(slice(NOISES))
        if abs(over(drawn)) < CLOSE:
            drawn = torch.cat([drawn, draw(slice(NOISES, None))])
        if over(drawn) > 0:
            return False
        if kind == "own" and level == 1.0:
            known = torch.cat([instead, torch.stack([look.picture for look in looks])])
            turned = float((nearest(drawn, known) < len(surrogates)).float().mean())
            return turned >= INSTEAD and _left(drawn, surrogates, target.picture) <= LEFT
        return True

    order = sorted(range(len(parts)), key=lambda part: part != suspect)  # a stable sort
    return next((part for part in order if not passes(*parts[part])), None)


def _rightful(case: Case, target: Target, captions: Sequence[str]) -> list[float]:
    """How alike to x_f a drawing for each caption may be: as its own picture in the bank, or as the surrogate."""
    instead = float(target.similarity(target.surrogates).max())
    alike: dict[str, float] = {}
    for caption, like in zip(case.retain_captions, target.similarity(case.retain).tolist(), strict=True):
        alike[caption] = max(like, alike.get(caption, -math.inf))
    return [max(instead, alike.get(caption, instead)) if caption else instead for caption in captions]


def _left(drawn: Pictures, surrogates: Pictures, x_f: Picture) -> float:
    """How much of the way from x_f to the nearest surrogate is left, on average: 0 is the surrogate itself."""
    left, row = torch.cdist(drawn.flatten(1), surrogates.flatten(1)).min(dim=1)
    return float((left / (surrogates - x_f).flatten(1).norm(dim=1)[row]).mean())


def smallest_strength(adapter: Adapter, passes: Callable[[], bool], *, whole: bool) -> tuple[float, bool]:
    """Bisect for the smallest strength that passes, and leave the adapter at it; 1 where even 1 does not pass.

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


def held_out(denoiser: Denoiser, case: Case, rows: Mapping[str, Tensor], near_rows: Tensor, seed: int) -> Pictures:
    """Pictures of a few retain captions from held-out noise, half of them neighbours: drawn twice, they show drift."""
    generator = torch.Generator().manual_seed(seed + 2 * HELD_OUT)
    near = near_rows[torch.randint(len(near_rows), (DRIFT_ROWS // 2,), generator=generator)]
    pick = torch.cat([near, torch.randint(len(case.retain), (DRIFT_ROWS // 2,), generator=generator)])
    x_T = torch.randn((DRIFT_ROWS, *case.x_r.shape[1:]), generator=generator).to(case.x_r.device)
    condition = {k: v[pick.to(v.device)] for k, v in rows.items()}
    return denoiser.decode(denoiser.denoise(x_T, 1.0, condition, steps=STEPS, guidance=denoiser.guidance)).cpu()


def drift(drawn: Pictures, base: Pictures) -> float:
    """Mean same-seed RMSE of pixels in [0, 1]."""
    return float((drawn - base).square().mean(dim=(1, 2, 3)).sqrt().mean()) / 2
