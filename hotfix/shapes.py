"""Shapes as types, once. B batch, C H W pixels or latents, P all LoRA parameters as one vector."""

from jaxtyping import Float
from torch import Tensor

Pictures = Float[Tensor, "B 3 H W"]  # pixels in [-1, 1]
Picture = Float[Tensor, "3 H W"]  # one of them
Latents = Float[Tensor, "B C H W"]  # what the denoiser denoises; pixels for a pixel model
PerExample = Float[Tensor, "B"]  # one number for every row of a batch
Flat = Float[Tensor, "P"]  # all trained parameters, or their gradient, as one vector
