r"""Problem: what every rival is given, and the operations that all of them are made of. No objective lives here.

x_f are forget pictures, x_s surrogates, x_r retained pictures, all latents on the network's device; x_t = a_t x + s_t
eps is a noisy state, t in (0, 1], 1 is pure noise. Losses are one number per example.

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
from hotfix.shapes import Latents, PerExample

Rows = Mapping[str, Tensor]  # conditions, one row for every example; empty for a model without captions
Space = Literal["own", "eps"]

T_MIN = 1e-3  # one step of a 1000-step schedule: where nothing is noisy, a target in ε or velocity is infinite


@dataclass
class Count:
    """Rows that went through the network, and that a gradient came back through."""

    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> int:
        """In forward rows."""
        return self.forward + 2 * self.backward

    def back(self, gradient: Tensor) -> None:
        """A hook on what the network put out."""
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
    space: Space = "own"  # where errors are squared: see `error`
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
    t: Tensor
    x_t: Latents
    condition: Rows


def pick(problem: Problem, among: int, rows: int) -> Tensor:
    """Indices drawn uniformly with replacement, (rows,)."""
    return torch.randint(among, (rows,), generator=problem.generator).to(problem.x_f.device)


def take(condition: Rows, which: Tensor) -> Rows:
    """Those rows of a condition."""
    return {k: v[which.to(v.device)] for k, v in condition.items()}


def captions(problem: Problem, rows: int) -> Rows:
    """Forget captions, any of them for any row."""
    return take(problem.forget, pick(problem, max(map(len, problem.forget.values()), default=1), rows))


def noisy(problem: Problem, x: Latents, condition: Rows, t_max: float = 1.0) -> Noisy:
    """Noise x (B, C, H, W) to levels t uniform in [T_MIN, t_max]. No paper's other distribution of t is imitated."""
    t = (T_MIN + (t_max - T_MIN) * torch.rand(len(x), generator=problem.generator)).to(x.device)
    eps = torch.randn(x.shape, generator=problem.generator).to(x.device)
    return Noisy(x, eps, t, problem.denoiser.noised(x, t, eps), condition)


def forget_rows(problem: Problem, rows: int, t_max: float = 1.0) -> Noisy:
    """Forget pictures, each under one of the forget captions, noised."""
    x = problem.x_f[pick(problem, len(problem.x_f), rows)]
    return noisy(problem, x, captions(problem, rows), t_max)


def retain_rows(problem: Problem, rows: int) -> Noisy:
    """Retained pictures under their own captions, noised."""
    which = pick(problem, len(problem.x_r), rows)
    return noisy(problem, problem.x_r[which], take(problem.retain, which))


def error(problem: Problem, out: Latents, wanted: Latents, rows: Noisy) -> PerExample:
    """Mean squared difference of two predictions for the same states, one number per example, in `problem.space`.

    The papers regress what their networks put out: ε for the DDPMs and SD 1.x, velocity for DUO's SD3. "own" does that
    for any network; "eps" takes the formulas to the letter, and compares implied noises whatever the network puts out.
    """
    if problem.space == "eps":
        out, wanted = (eps_hat(problem.denoiser, one, rows.x_t, rows.t) for one in (out, wanted))
    return (out - wanted).square().mean(dim=(1, 2, 3))


def denoising_loss(problem: Problem, rows: Noisy) -> PerExample:
    """The loss that diffusion models are trained with, on these rows."""
    out = problem.predict(rows.x_t, rows.t, rows.condition)
    return error(problem, out, target(problem.denoiser, rows.x, rows.eps, rows.t), rows)
