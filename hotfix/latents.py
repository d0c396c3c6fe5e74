"""Pixels to latents and back, by the conventions of the pipelines' autoencoders."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from hotfix import offload
from hotfix.shapes import Latents, Pictures


def encode(vae: Any, pictures: Pictures) -> Latents:
    """The latents that a network sees, in float32, without noise of their own."""
    x = pictures.to(offload.device(vae), vae.dtype)
    out = vars(vae.encode(x.unsqueeze(2) if _of_video(vae) else x))  # one of three names, by the class of the VAE
    z = out["latent_dist"].mode() if "latent_dist" in out else next(iter(out.values()))
    if _of_tokens(vae):
        z = pixel_unshuffle(z, 2)
    shift, scale = _scales(vae, z)
    z = (z - shift) * scale
    return (z.squeeze(2) if _of_video(vae) else z).float()


def decode(vae: Any, latents: Latents) -> Pictures:
    """Pictures in [-1, 1], in float32."""
    z = latents.unsqueeze(2) if _of_video(vae) else latents
    shift, scale = _scales(vae, z)
    z = z / scale + shift
    x = vae.decode((pixel_shuffle(z, 2) if _of_tokens(vae) else z).to(vae.dtype)).sample
    return (x.squeeze(2) if _of_video(vae) else x).float().clamp(-1, 1)


def _of_video(vae: Any) -> bool:
    """Whether a picture is a film of one frame to it (Qwen-Image)."""
    return "temperal_downsample" in vae.config


def _of_tokens(vae: Any) -> bool:
    """Whether 2x2 of its latents are one for the network, and normalised as such (FLUX.2)."""
    return hasattr(vae, "bn")


def _scales(vae: Any, z: Tensor) -> tuple[Any, Any]:
    """What is taken off a raw latent, and what it is then multiplied by: one number, or one for every channel."""
    if _of_tokens(vae):
        mean, variance = (x.to(z.device).view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).rsqrt()
    if (mean := vae.config.get("latents_mean")) is None:
        return vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
    shape = (1, -1, *(1 for _ in z.shape[2:]))
    shift, std = (torch.tensor(values, device=z.device).view(shape) for values in (mean, vae.config.latents_std))
    return shift, 1 / std
