r"""Problem: what every rival is given, and the operations that all of them are made of. No objective lives here.

x_f are forget pictures, x_s surrogates, x_r retained pictures, all as latents; x_t = a_t x + s_t eps is a noisy state,
t in (0, 1], 1 is pure noise. A rival makes one flat gradient a step, of losses that are one number per example, and
`descend` follows it with Adam, clipped to norm 1, the same for all.

Compute is counted in rows through the network: `count.forward`, and `count.backward` every time a gradient comes back
through them. A backward row costs about two forward rows; nothing else counts.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.rivals.prediction import eps_hat, target
from hotfix.denoiser import Denoiser
from hotfix.shapes import Flat, Latents, PerExample

Rows = Mapping[str, Tensor]  # conditions, one row for every example; empty for a model without captions
Space = Literal["own", "eps"]

T_MIN = 1e-3  # one step of a 1000-step schedule: where nothing is noisy, a target in ε or velocity is infinite
CLIP = 1.0


@dataclass
class Count:
    """Rows that went through the network."""

    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> int:
        """In forward rows."""
        return self.forward + 2 * self.backward

    def back(self, gradient: Tensor) -> None:
        """A hook on what the network put out: a gradient has come back."""
        self.backward += len(gradient)


@dataclass(frozen=True)
class Problem:
    """One forget request on one model that is open for training: made by `benchmarks.rivals.ways.opened`."""

    denoiser: Denoiser
    x_f: Latents  # (N, C, H, W)
    x_s: Latents  # (K, C, H, W)
    x_r: Latents  # (R, C, H, W)
    forget: Rows  # any row may go with any forget picture; the empty caption if the request names none
    empty: Rows  # one row
    retain: Rows  # R rows, one for each retained picture
    parameters: tuple[nn.Parameter, ...]
    base: Callable[[], AbstractContextManager[None]]  # under it the denoiser predicts as the untouched model
    scale: Callable[[float], None]  # multiply everything that was trained: 0 is the base, -1 its opposite
    generator: torch.Generator  # all draws come from it
    space: Space = "own"  # where errors are squared: what the network puts out, or ε whatever it puts out
    count: Count = field(default_factory=Count)

    def predict(self, x_t: Latents, t: Tensor, condition: Rows) -> Latents:
        """What the network puts out, counted."""
        out = self.denoiser.predict(x_t, t, condition)
        self.count.forward += len(out)
        if out.requires_grad:
            out.register_hook(self.count.back)
        return out

    def bare(self, rows: int) -> Rows:
        """The empty caption, as many rows of it."""
        return {k: v.expand(rows, *v.shape[1:]) for k, v in self.empty.items()}

    def teacher(self, x_t: Latents, t: Tensor, condition: Rows) -> Latents:
        """What the untouched model puts out, counted; carries no gradient."""
        with torch.no_grad(), self.base():
            return self.predict(x_t, t, condition)


@dataclass(frozen=True)
class Noisy:
    """Rows of noisy states, x_t = a_t x + s_t eps."""

    x: Latents
    eps: Latents
    t: Tensor  # (B,)
    x_t: Latents
    condition: Rows


def pick(problem: Problem, among: int, rows: int) -> Tensor:
    """Indices drawn uniformly with replacement, (rows,)."""
    return torch.randint(among, (rows,), generator=problem.generator)


def take(condition: Rows, which: Tensor) -> dict[str, Tensor]:
    """Those rows of a condition."""
    return {k: v[which.to(v.device)] for k, v in condition.items()}


def noisy(problem: Problem, x: Latents, condition: Rows, t_max: float = 1.0) -> Noisy:
    """Noise x (B, C, H, W) to levels t uniform in [T_MIN, t_max]. No paper's other distribution of t is imitated."""
    t = (T_MIN + (t_max - T_MIN) * torch.rand(len(x), generator=problem.generator)).to(x.device)
    eps = torch.randn(x.shape, generator=problem.generator).to(x.device)
    return Noisy(x, eps, t, problem.denoiser.noised(x, t, eps), condition)


def forget_rows(problem: Problem, rows: int, t_max: float = 1.0) -> Noisy:
    """Forget pictures, each under one of the forget captions, noised."""
    x = problem.x_f[pick(problem, len(problem.x_f), rows).to(problem.x_f.device)]
    among = max(map(len, problem.forget.values()), default=1)
    return noisy(problem, x, take(problem.forget, pick(problem, among, rows)), t_max)


def retain_rows(problem: Problem, rows: int, t_max: float = 1.0) -> Noisy:
    """Retained pictures under their own captions, noised."""
    which = pick(problem, len(problem.x_r), rows)
    return noisy(problem, problem.x_r[which.to(problem.x_r.device)], take(problem.retain, which), t_max)


def error(problem: Problem, out: Latents, wanted: Latents, rows: Noisy) -> PerExample:
    """Mean squared difference of two predictions for the same states, one number per example, in `problem.space`.

    Every paper here regresses what its network puts out: ε for the DDPMs and SD 1.x, velocity for DUO's SD3. "own" does
    that for any network; "eps" takes the formulas to the letter where the network's own output is not ε.
    """
    if problem.space == "eps":
        out, wanted = (eps_hat(problem.denoiser, one, rows.x_t, rows.t) for one in (out, wanted))
    return (out - wanted).square().mean(dim=(1, 2, 3))


def denoising_loss(problem: Problem, rows: Noisy) -> PerExample:
    """The loss that diffusion models are trained with, on these rows."""
    out = problem.predict(rows.x_t, rows.t, rows.condition)
    return error(problem, out, target(problem.denoiser, rows.x, rows.eps, rows.t), rows)


def gradient(problem: Problem, losses: PerExample, retain_graph: bool = False) -> Flat:
    """Gradient of the mean loss in all trained parameters, as one vector; zero where a parameter has no part in it."""
    grads = torch.autograd.grad(
        losses.mean(), problem.parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in grads])


def descend(problem: Problem, steps: int, lr: float, direction: Callable[[], Flat]) -> None:
    """Follow `direction()`, a flat gradient, down for `steps` steps of Adam, clipped to norm CLIP, no weight decay."""
    optimizer = torch.optim.Adam(problem.parameters, lr=lr)
    sizes = [p.numel() for p in problem.parameters]
    for _ in range(steps):
        for p, g in zip(problem.parameters, direction().split(sizes), strict=True):
            p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(problem.parameters, CLIP)
        optimizer.step()
    optimizer.zero_grad()
