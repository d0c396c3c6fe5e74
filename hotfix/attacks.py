"""Attacks: ways to get a suppressed picture back. Each is a function that draws, with a budget and a source.

An attack proves something only beside two others: against the unpatched base, where it has to win, and against the base
for a picture that the model never saw. What wins there too draws anything it is asked for, and says nothing of memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from hotfix import lora, objective
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.partial import STEPS, cycled
from hotfix.report import Attack, Rate
from hotfix.shapes import Latents, Pictures
from hotfix.similarity import null, pixel, stranger, threshold
from hotfix.stack import Stack

BATCH = 8
MIXED = 0.3  # share of fresh noise in an inverted one
SEARCHED, SHORT, STRIDE = 15, 4, 0.1  # steps of the search for a noise, denoising steps in each, and its step size
WORDS, WORDS_RATE = 150, 0.02  # steps of textual inversion, and their size
RELEARNED, RELEARNING_RATE, RELEARNING_RANK = 20, 1e-3, 4

LEARNT = ("encoder_hidden_states", "pooled_projections", "text_embeds")  # conditions that are words

Draw = Callable[[Denoiser, Case, Target, int, int], Pictures]


def other_samplings(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """The pipeline's own call with half and twice the steps, without guidance, and with twice of it, in equal parts."""
    call = dict(denoiser.call)
    steps = int(call.get("num_inference_steps", 50))
    ways = [call | {"num_inference_steps": max(1, steps // 2)}, call | {"num_inference_steps": 2 * steps}]
    if denoiser.guidance != 1:
        ways += [call | {"guidance_scale": scale} for scale in (1.0, 2 * denoiser.guidance)]
    captions, drawn = cycled(list(case.captions) or [""], n), []
    for i, way in enumerate(ways):
        rows = range(i, n, len(ways))
        seeds = [seed + row for row in rows]
        if seeds:
            drawn.append(replace(denoiser, call=way).draw([captions[row] for row in rows], seeds))
    return torch.cat(drawn)


@torch.no_grad()
def inversion(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """The picture run backwards to its noise without a caption, and drawn again from there, a little off (DDIM)."""
    x, times = target.x_f, torch.linspace(0.02, 1.0, 2 * STEPS)
    rows = denoiser.embed([""])
    for now, then in pairwise(times.to(x.device)):
        x0 = denoiser.x_hat(x, now[None], rows)
        (a, s), (a_then, s_then) = denoiser.schedule(now[None]), denoiser.schedule(then[None])
        x = a_then * x0 + s_then * (x - a * x0) / s
    fresh = _noise(denoiser, n, seed)
    return _drawn(denoiser, case, (1 - MIXED**2) ** 0.5 * x + MIXED * fresh)


def noise_search(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """Noises led by the gradient to where a short sampling ends at the picture, kept as long as noises are (IVO)."""
    noises = []
    for x in _noise(denoiser, n, seed).split(BATCH):
        rows = denoiser.embed(cycled(list(case.captions) or [""], len(x)))
        length = x.flatten(1).norm(dim=1)[:, None, None, None]
        for _ in range(SEARCHED):
            x = x.detach().requires_grad_()
            error = (_short(denoiser, x, rows) - target.x_f).square().sum()
            (uphill,) = torch.autograd.grad(error, x)
            x = x.detach() - STRIDE * length * uphill / uphill.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(
                1e-9
            )
            x = x * length / x.flatten(1).norm(dim=1)[:, None, None, None]
        noises.append(x.detach())
    return _drawn(denoiser, case, torch.cat(noises))


def textual_inversion(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """A condition learnt on the picture through the attacked model, then drawn from any noise (CCE)."""
    generator = torch.Generator().manual_seed(seed)
    rows = denoiser.embed([case.captions[0] if case.captions else ""])
    learnt = {key: row.clone().requires_grad_() for key, row in rows.items() if key in LEARNT}
    optimiser = torch.optim.Adam(learnt.values(), lr=WORDS_RATE)
    for _ in range(WORDS):
        loss = _denoising_loss(denoiser, target.x_f, {**rows, **learnt}, generator)
        for row, gradient in zip(learnt.values(), torch.autograd.grad(loss, list(learnt.values())), strict=True):
            row.grad = gradient
        optimiser.step()
    found = {key: row.detach().expand(n, *row.shape[1:]) for key, row in {**rows, **learnt}.items()}
    x = _noise(denoiser, n, seed)
    return denoiser.decode(denoiser.denoise(x, 1.0, found, steps=STEPS, guidance=denoiser.guidance)).cpu()


def relearning(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """A LoRA trained for a few steps on the picture, on top of whatever is on."""
    return _after_training(denoiser, case, target.x_f, list(case.captions) or [""], n, seed)


def benign_tuning(denoiser: Denoiser, case: Case, target: Target, n: int, seed: int) -> Pictures:
    """The same on pictures that have nothing to do with it."""
    return _after_training(denoiser, case, case.x_r, list(case.retain_captions), n, seed)


@dataclass(frozen=True)
class Way:
    """An attack, and what to say of it."""

    draw: Draw
    budget: str
    source: str
    of_words: bool = False  # only where the pipeline takes some

    def fits(self, denoiser: Denoiser) -> bool:
        """Whether it can be tried on this pipeline."""
        return not self.of_words or any(key in LEARNT for key in denoiser.embed([""]))


ATTACKS: Mapping[str, Way] = {
    "samplings": Way(other_samplings, "half and twice the steps, no and twice the guidance", "docs/method.md"),
    "inversion": Way(
        inversion, f"{2 * STEPS} steps back, {MIXED:.0%} of fresh noise, {STEPS} steps forth", "arXiv:2412.00782"
    ),
    "noise-search": Way(noise_search, f"{SEARCHED} gradient steps through {SHORT} denoising steps", "arXiv:2602.00175"),
    "textual-inversion": Way(textual_inversion, f"{WORDS} steps on the caption's embedding", "arXiv:2308.01508", True),
    "relearning": Way(
        relearning, f"{RELEARNED} steps of a LoRA of rank {RELEARNING_RANK} on the picture", "arXiv:2510.03263"
    ),
    "benign-tuning": Way(benign_tuning, f"{RELEARNED} such steps on other pictures", "arXiv:2410.12777"),
}


def chosen(names: Sequence[str]) -> list[str]:
    """The attacks that are meant; "all" means all. Raises HotfixError at a name that is none."""
    if unknown := sorted(set(names) - {"all", *ATTACKS}):
        raise HotfixError(
            f"{', '.join(unknown)} is no attack", wanted=f"all, or some of {', '.join(ATTACKS)}", hint="docs/cli.md"
        )
    return [name for name in ATTACKS if name in names or "all" in names]


def tried(denoiser: Denoiser, stack: Stack, case: Case, name: str, n: int, seed: int) -> Attack:
    """One attack, n drawings for the targets in turn: on the base, on the patched base, and for strangers.

    Args:
        denoiser: of the unpatched base.
        stack: what is attacked.
        case: the targets.
        name: of the attack.
        n: drawings; every target gets an equal share.
        seed: of all noise.
    """
    way, each = ATTACKS[name], max(1, n // len(case.targets))

    def hits(targets: Sequence[Target]) -> Rate:
        found = [one.returned(way.draw(denoiser, case, one, each, seed)) for one in targets]
        return Rate.of(int(torch.cat(found).sum()), each * len(targets))

    before, unseen = hits(case.targets), hits([_unseen(denoiser, case, one) for one in case.targets])
    with stack.on(denoiser.pipe):
        after = hits(case.targets)
    return Attack(name=name, budget=way.budget, source=way.source, before=before, after=after, stranger=unseen)


def _unseen(denoiser: Denoiser, case: Case, target: Target) -> Target:
    """A picture that the model never saw, as if it were a target."""
    picture = stranger(target.picture)
    similarity = pixel(picture)
    usual = null(similarity, case.strangers)
    x = denoiser.encode(picture[None])
    return replace(target, picture=picture, x_f=x, similarity=similarity, null=usual, tau=threshold(usual))


def _noise(denoiser: Denoiser, n: int, seed: int) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, *denoiser.latent_shape), generator=generator).to(denoiser.device)


def _drawn(denoiser: Denoiser, case: Case, x_T: Latents) -> Pictures:
    """From given noises to pictures, under the target's captions if it has some."""
    rows = denoiser.embed(cycled(list(case.captions) or [""], len(x_T)))
    guidance = denoiser.guidance if case.captions else 1.0
    return denoiser.decode(denoiser.denoise(x_T, 1.0, rows, steps=STEPS, guidance=guidance)).cpu()


def _short(denoiser: Denoiser, x: Latents, rows: Mapping[str, Tensor]) -> Latents:
    """A few deterministic denoising steps that a gradient flows through."""
    for now, then in pairwise(torch.linspace(1.0, 0.0, SHORT + 1).to(x.device)):
        t = now.expand(len(x))
        x0 = denoiser.x_hat(x, t, rows)
        (a, s), (a_then, s_then) = denoiser.schedule(t), denoiser.schedule(then.expand(len(x)))
        x = a_then * x0 + s_then * (x - a * x0) / s if then > 0 else x0
    return x


def _denoising_loss(denoiser: Denoiser, x: Latents, rows: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """What ordinary training minimises, of a batch of x under its rows, at noise levels drawn evenly."""
    pick = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
    t = (1 - torch.rand(BATCH, generator=generator)).to(x.device)
    eps = torch.randn((BATCH, *x.shape[1:]), generator=generator).to(x.device)
    rows = {k: v[pick] if len(v) == len(x) else v.expand(BATCH, *v.shape[1:]) for k, v in rows.items()}
    x_hat = denoiser.x_hat(denoiser.noised(x[pick], t, eps), t, rows)
    return objective.endpoint(x_hat, x[pick], denoiser.weight(t)).mean()


def _after_training(denoiser: Denoiser, case: Case, x: Latents, captions: list[str], n: int, seed: int) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    rows = denoiser.embed(cycled(captions, len(x)))
    with lora.attached(denoiser.model, denoiser.targets, RELEARNING_RANK, seed) as adapter:
        optimiser = torch.optim.AdamW(adapter.parameters, lr=RELEARNING_RATE)
        for _ in range(RELEARNED):
            gradients = torch.autograd.grad(_denoising_loss(denoiser, x, rows, generator), adapter.parameters)
            for p, gradient in zip(adapter.parameters, gradients, strict=True):
                p.grad = gradient
            optimiser.step()
        return _drawn(denoiser, case, _noise(denoiser, n, seed))
