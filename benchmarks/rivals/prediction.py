r"""Prediction: what a network should put out, and which noise its output implies, whatever it predicts.

A state is x_t = a_t x + s_t eps. VP networks predict eps, v = a eps - s x or x; a rectified flow u = eps - x.
"""

from torch import Tensor

from hotfix.denoiser import Denoiser
from hotfix.shapes import Latents


def target(denoiser: Denoiser, x: Latents, eps: Latents, t: Tensor) -> Latents:
    """What the network should put out for endpoint x and noise eps, (B, C, H, W): eps, v, x or u.

    Args:
        denoiser: says what the network predicts.
        x: clean endpoints, (B, C, H, W).
        eps: noise, same shape.
        t: noise levels in (0, 1], (B,).
    """
    a, s = denoiser.schedule(t)
    if denoiser.flow:
        return eps - x
    return {"epsilon": eps, "v_prediction": a * eps - s * x, "sample": x}[_kind(denoiser)]


def towards(denoiser: Denoiser, x: Latents, x_t: Latents, t: Tensor) -> Latents:
    """What the network should put out at x_t so that it heads for x: `target` for the noise (x_t - a x) / s.

    In ε and v this grows as 1/s_t at low noise unless x_t was made from x.

    Args:
        denoiser: says what the network predicts.
        x: endpoints to head for, (B, C, H, W).
        x_t: noisy states, same shape.
        t: noise levels in (0, 1], (B,).
    """
    a, s = denoiser.schedule(t)
    return target(denoiser, x, (x_t - a * x) / s, t)


def eps_hat(denoiser: Denoiser, out: Latents, x_t: Latents, t: Tensor) -> Latents:
    """The noise that an output implies, (B, C, H, W): out, s x_t + a v, (x_t - a x) / s, or x_t + a u.

    Args:
        denoiser: says what the network predicts.
        out: what it put out, (B, C, H, W).
        x_t: for which states, same shape.
        t: noise levels in (0, 1], (B,).
    """
    a, s = denoiser.schedule(t)
    if denoiser.flow:
        return x_t + a * out
    return {"epsilon": out, "v_prediction": s * x_t + a * out, "sample": (x_t - a * out) / s}[_kind(denoiser)]


def _kind(denoiser: Denoiser) -> str:
    return str(denoiser.pipe.scheduler.config.prediction_type)
