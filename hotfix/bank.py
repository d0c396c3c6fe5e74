"""The bank of what must stay: the user's pictures, or what the base draws for the prompts that it knows."""

import torch

from hotfix import pictures
from hotfix.denoiser import Denoiser
from hotfix.pipeline import prompts as known_prompts
from hotfix.recipe import Recipe
from hotfix.shapes import Pictures

STEPS = 25  # at most: in eight, pixel models draw softer and paler pictures than those that must stay
MOST_PROMPTS = 512


def bank_captions(recipe: Recipe, denoiser: Denoiser) -> list[str]:
    """One for every picture of the bank, also of those that turn out to be a forget picture."""
    if recipe.retain.images:
        return [""] * len(recipe.files(recipe.retain.images, "retain.images"))
    if not denoiser.captioned:
        return [""] * recipe.retain.size
    names = recipe.retain.prompts or known_prompts(recipe.base.pipeline) or [""]
    names = [name for name in names if name not in recipe.forget.captions][:MOST_PROMPTS]
    return [names[i % len(names)] for i in range(max(recipe.retain.size, len(names)))]


def bank_steps(denoiser: Denoiser) -> int:
    """Denoising steps of a retain picture, and where drift is looked at: the production call's, up to a limit."""
    return min(STEPS, int(denoiser.call.get("num_inference_steps", STEPS)))


def bank_pictures(recipe: Recipe, denoiser: Denoiser) -> Pictures:
    """Retain pictures: the user's, or the base's own drawings for those captions."""
    if recipe.retain.images:
        return pictures.load(recipe.files(recipe.retain.images, "retain.images"), denoiser.size)
    captions = bank_captions(recipe, denoiser)
    generator = torch.Generator().manual_seed(recipe.train.seed)
    shape = (len(captions), *denoiser.latent_shape)
    x_T = torch.randn(shape, generator=generator).to(denoiser.device)
    x_r = denoiser.denoise(x_T, 1.0, denoiser.embed(captions), steps=bank_steps(denoiser), guidance=denoiser.guidance)
    return denoiser.decode(x_r).cpu()
