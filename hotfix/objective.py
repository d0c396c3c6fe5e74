r"""The loss: regress the endpoint that the model heads for.

A noisy state is x_t = a_t x + s_t eps (variance-preserving models: a_t² + s_t² = 1; rectified flow: a_t = 1 - t,
s_t = t). Whatever the model predicts (ε, v or a velocity), x_hat is the clean endpoint that the prediction implies.
x_f is a forget picture, x_s its surrogate; the state is noised from x_f while the target is x_s.
"""

import torch
from torch import Tensor

from hotfix.shapes import Latents, PerExample


def endpoint(x_hat: Latents, target: Latents, w: Tensor) -> PerExample:
    r"""Squared endpoint error with a weight, one number per example: w_t · mean (x_hat - target)².

    With target = x_s and w_t = s_t² (∂out/∂x_hat)² this is the forget loss: s_t² times the squared error of what the
    network puts out. Out of the same error ε-space makes (a_t/s_t)² and flow space 1/s_t², which diverge at low noise;
    s_t² takes that back, and leaves the highest noise levels their say: a_t² ‖x_hat - x_s‖² for ε, 1 ‖x_hat - x_s‖²
    for v and velocities.

    Args:
        x_hat: predicted endpoints, shape (B, C, H, W).
        target: endpoints to head for, same shape; carries no gradient.
        w: weight of each row, shape (B,); `hotfix.denoiser.Denoiser.weight` for the forget loss.

    Source: endpoint replacement after Lee et al. 2026, arXiv:2603.10445; the weight is ours (docs/method.md).
    """
    return w * (x_hat - target).square().mean(dim=(1, 2, 3))


def distil(out: Latents, teacher: Latents) -> PerExample:
    """Squared difference of two predictions of one parameterisation (ε, v, velocity), one number per example.

    The retain loss. A sampler integrates predictions, so an error counts alike wherever on its way it is made; the
    endpoint weight a_t² would let go of the highest noise levels, where a picture's composition is decided.

    Args:
        out: predictions of the patched model, shape (B, C, H, W).
        teacher: predictions of the unpatched model for the same states; carries no gradient.
    """
    return (out - teacher).square().mean(dim=(1, 2, 3))


def share(x_hat: Latents, x_f: Latents, around: Latents) -> Tensor:
    r"""How much of an endpoint is x_f: the r in [0, 1] at which r x_f + (1 - r) around comes nearest, (B, 1, 1, 1).

    An exact denoiser heads for the posterior mean of all that it learnt, w_f x_f + (1 - w_f) around, where `around` is
    that of everything else: then r is w_f, the probability that the state came from x_f.

    Args:
        x_hat: endpoints of the unpatched model, shape (B, C, H, W).
        x_f: forget pictures, same shape.
        around: `posterior_mean` of the pictures that stay, same shape.
    """
    apart = x_f - around
    r = ((x_hat - around) * apart).flatten(1).sum(dim=1) / apart.square().flatten(1).sum(dim=1).clamp_min(1e-12)
    return r.clamp(0, 1)[:, None, None, None]


def delta(x_hat_base: Latents, x_f: Latents, x_s: Latents, r: Tensor) -> Latents:
    r"""The unpatched model's own endpoint with x_f exchanged for x_s: x_hat_base + r (x_s - x_f).

    Where r is the share of x_f in that endpoint, this is what a model would head for that had learnt x_s in its place,
    and all else alike: x_s itself where the base brings back x_f, and nothing new where it does not.

    Args:
        x_hat_base: endpoints of the unpatched model, shape (B, C, H, W).
        x_f: forget pictures, same shape.
        x_s: their surrogates, same shape.
        r: share of x_f in each endpoint, shape (B, 1, 1, 1), in [0, 1].
    """
    return x_hat_base + r * (x_s - x_f)


def ddim(x_t: Latents, x_hat: Latents, now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> Latents:
    r"""From one noise level to another along the endpoint x_hat: a' x_hat + s' (x_t - a x_hat) / s.

    Without noise of its own, forwards or backwards; for a flow that is a step of Euler's.

    Args:
        x_t: noisy states, shape (B, C, H, W).
        x_hat: predicted endpoints, same shape.
        now: (a, s) of x_t, each (B, 1, 1, 1).
        then: (a', s') of what is returned, same shapes.

    Source: equation 12 with σ = 0 of DDIM, Song et al. 2020, arXiv:2010.02502.
    """
    (a, s), (a_then, s_then) = now, then
    return a_then * x_hat + s_then * (x_t - a * x_hat) / s.clamp_min(1e-6)


def landing(x_t: Latents, x_then: Latents, now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> Latents:
    r"""The endpoint along which one step of `ddim` ends where several did: (x' - s'/s x_t) / (a' - s'/s a).

    Args:
        x_t: noisy states, shape (B, C, H, W).
        x_then: what they became at a lower noise level, same shape.
        now: (a, s) of x_t, each (B, 1, 1, 1).
        then: (a', s') of x_then, same shapes.

    Source: the target of progressive distillation, Salimans & Ho 2022, arXiv:2202.00512, algorithm 2.
    """
    (a, s), (a_then, s_then) = now, then
    ratio = s_then / s
    return (x_then - ratio * x_t) / (a_then - ratio * a)


def length(x: Latents) -> Tensor:
    """Euclidean length of every row, (B, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def adjacency(x_f: Latents, other: Latents, alpha: float) -> Latents:
    r"""A shift δ = α (other - x_f) / ‖other - x_f‖, at most all of the way.

    Added to x_f and to x_s alike: what lies around a picture heads for what lies around its surrogate.

    Args:
        x_f: a forget picture, shape (C, H, W).
        other: a picture near it, same shape.
        alpha: length of the shift, ≥ 0.

    Source: the adjacency loss of GUIDE, Seo et al. 2024, arXiv:2405.09879. There `other` is any face, and α is uniform
    in [0, 15] where the target lies 30 past the mean face.
    """
    apart = other - x_f
    return apart * min(1.0, alpha / max(float(apart.norm()), 1e-8))


def posterior(x_t: Latents, x: Latents, a_t: Tensor, s_t: Tensor) -> Tensor:
    r"""Which of some pictures a noisy state came from: softmax over x_i of -‖x_t - a_t x_i‖² / (2 s_t²), shape (B, N).

    Args:
        x_t: noisy states, shape (B, C, H, W).
        x: pictures, shape (N, C, H, W).
        a_t: signal scale of each row, shape (B,) or (B, 1, 1, 1).
        s_t: noise scale of each row, same shape.

    Source: the exact denoiser of a finite set weights its pictures so; ReTrack, arXiv:2509.13007.
    """
    rows = []
    for one, a, s in zip(x_t, a_t.flatten(), s_t.flatten(), strict=True):  # not at once: (B, N, P) may not fit
        apart = (one - a * x).square().flatten(1).sum(dim=1)
        rows.append(torch.softmax(-apart / (2 * s.square().clamp_min(1e-8)), dim=0))
    return torch.stack(rows)


def posterior_mean(x_t: Latents, x: Latents, a_t: Tensor, s_t: Tensor) -> Latents:
    r"""Where a model fitted to the pictures x alone would head from x_t: sum_i w_i x_i with the posterior weights.

    At low noise that is the nearest of them, at pure noise their mean. Arguments as for `posterior`.
    """
    return torch.einsum("bn,nchw->bchw", posterior(x_t, x, a_t, s_t), x)


def left_out(odds: Tensor, like: Tensor, share: float = 0.95) -> float:
    r"""A quantile of what a model of some pictures alone would draw: of `like`, weighted by the posterior.

    Where x_f is noised and is not among the pictures, this is how alike to x_f the drawings of an exact model are that
    never saw it. Nothing that draws like the data can do with less.

    Args:
        odds: posterior of every noisy state, shape (B, N), each row adding up to 1.
        like: similarity to x_f of every picture, shape (N,), or (B, N) where it depends on the state.
        share: of the draws that lie below, in (0, 1).
    """
    like, order = like.expand_as(odds).flatten().sort()
    below = (odds.flatten()[order] / len(odds)).cumsum(dim=0)
    return float(like[int((below < share).sum().clamp(max=len(like) - 1))])


def responsibility(x_t: Latents, x_f: Latents, x_r: Latents, a_t: Tensor, s_t: Tensor) -> PerExample:
    """How likely each state came from its forget picture x_f (B, C, H, W) rather than from a retain picture x_r."""
    rows = zip(x_t.split(1), x_f.split(1), a_t.flatten().split(1), s_t.flatten().split(1), strict=True)
    return torch.cat([posterior(x, torch.cat([own, x_r]), a, s)[:, 0] for x, own, a, s in rows])
