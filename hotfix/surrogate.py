"""What should come instead of x_f: the nearest picture that is no longer it. Near edits ask least of the model."""

import torch

from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError
from hotfix.gate import Chosen, Gate
from hotfix.shapes import Picture, Pictures
from hotfix.similarity import null, pixel, threshold

CANDIDATES = 8  # edits drawn at every strength that is tried
BISECTIONS = 5
STEPS = 12  # denoising steps of an edit
NEIGHBOURS = 16
TOUCH_UP = 0.3  # noise level


def check_files(surrogates: Pictures, forget: Pictures, bank: Pictures) -> None:
    """Refuse a replacement that is a picture to be replaced, be it of another one.

    Raises:
        RecipeError: a surrogate is as good as identical to a forget picture.
    """
    for number, picture in enumerate(forget, start=1):
        similarity = pixel(picture)
        like, tau = similarity(surrogates), (1 + threshold(null(similarity, bank))) / 2
        if bool((like >= tau).any()):
            which = f"forget picture {number}" if len(forget) > 1 else "the forget picture"
            raise RecipeError(
                f"surrogate {int(like.argmax()) + 1} is {which} itself (similarity {float(like.max()):.3f})",
                wanted=f"less than {tau:.3f}",
                hint="name what should come instead, or leave out surrogate.images and kind: the base edits it",
            )


def sdedit(denoiser: Denoiser, picture: Picture, gate: Gate, count: int, seed: int) -> Chosen:
    """The base's own edits of x_f: noise it to `strength`, denoise without a caption, keep the nearest that pass.

    The smallest strength at which half of the edits are no longer x_f is found by bisection.

    Args:
        denoiser: the unpatched base.
        picture: x_f.
        gate: what an edit must pass.
        count: surrogates wanted.
        seed: of the noise.

    Raises:
        RecipeError: no edit passes.

    Source: Meng et al. 2022, arXiv:2108.01073; as a surrogate, Park et al. 2024, arXiv:2407.21035.
    """
    x = denoiser.encode(picture[None]).expand(CANDIDATES, -1, -1, -1)
    empty = {k: v.expand(CANDIDATES, *v.shape[1:]) for k, v in denoiser.embed([""]).items()}

    def edits(strength: float, seed: int) -> Pictures:
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
        t = torch.full((CANDIDATES,), strength, device=x.device)
        return denoiser.decode(denoiser.denoise(denoiser.noised(x, t, eps), strength, empty, steps=STEPS)).cpu()

    low, high = 0.2, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = int(gate.strangers(edits(middle, seed)).sum()) >= CANDIDATES // 2
        low, high = (low, middle) if enough else (middle, high)
    found = torch.cat([edits(high, seed + i) for i in range(2)])
    return gate.choose(
        found,
        count,
        f"edits from noise level {high:.2f}",
        hint='give the replacement yourself: surrogate.kind = "files"',
    )


def nearest(bank: Pictures, gate: Gate, count: int) -> Chosen:
    """The retain pictures most like x_f that are not it, nearest first.

    Raises:
        RecipeError: every retain picture is too similar.
    """
    return gate.choose(bank, count, "retain pictures", hint="raise retain.size")


def extrapolate(denoiser: Denoiser, picture: Picture, bank: Pictures, gate: Gate, count: int, seed: int) -> Chosen:
    """Away from x_f in latent space, through the mean μ of its nearest neighbours and past it if need be.

        x_s = x_f + β (μ - x_f), then a weak SDEdit, towards what the base knows

    β is the smallest in [0, 2] at which none of them is x_f any more.

    Args:
        denoiser: the unpatched base.
        picture: x_f.
        bank: retain pictures.
        gate: what an edit must pass.
        count: surrogates wanted; they differ by the noise of the SDEdit.
        seed: of that noise.

    Raises:
        RecipeError: nothing passes.

    Source: the target latents of GUIDE, Seo et al. 2024 (arXiv:2405.09879), with its distance found, not set.
    """
    near = bank[gate.similarity(bank).topk(min(NEIGHBOURS, len(bank))).indices]
    x_f, mean = denoiser.encode(picture[None]), denoiser.encode(near).mean(dim=0, keepdim=True)
    empty = {k: v.expand(count, *v.shape[1:]) for k, v in denoiser.embed([""]).items()}
    t = torch.full((count,), TOUCH_UP, device=x_f.device)
    eps = torch.randn((count, *x_f.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(x_f.device)

    def edits(beta: float) -> Pictures:
        x = torch.lerp(x_f, mean, beta).expand(count, -1, -1, -1)
        return denoiser.decode(denoiser.denoise(denoiser.noised(x, t, eps), TOUCH_UP, empty, steps=STEPS)).cpu()

    low, high = 0.0, 2.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(gate.strangers(edits(middle)).all()) else (middle, high)
    return gate.choose(
        edits(high),
        count,
        f"edits past the neighbours' mean, β = {high:.2f},",
        hint='let the base edit the picture instead: surrogate.kind = "sdedit"',
    )
