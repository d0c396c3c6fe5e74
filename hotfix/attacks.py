"""Attacks: ways to get a suppressed picture back, each a function that draws, with a budget and a source.

An attack proves something only beside two others: against the unpatched base, where it has to win, and against the base
for a picture that the model never saw. What wins there too draws anything it is asked for, and says nothing of memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from hotfix import attack_adapters, attack_noise, attack_weights, attack_words
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.findings import Attack
from hotfix.intervals import Rate
from hotfix.partial import STEPS
from hotfix.shapes import Pictures
from hotfix.similarity import null, pixel, stranger, threshold
from hotfix.stack import Stack

Draw = Callable[[Denoiser, Case, Target, int, int], Pictures]

RELEARNED = (5, 20, 80)  # training steps: the points of a recovery curve


@dataclass(frozen=True)
class Way:
    """An attack, and what to say of it."""

    draw: Callable[..., Pictures]  # as Draw, with `brought` where there is some
    budget: str
    source: str
    of_words: bool = False  # only where the pipeline reads some
    bring: Callable[[Denoiser, Case, int], attack_adapters.Factors] | None = None  # made beforehand, on the base

    def fits(self, denoiser: Denoiser) -> bool:
        """Whether it can be tried on this pipeline."""
        return not self.of_words or getattr(denoiser.pipe, "tokenizer", None) is not None


ATTACKS: Mapping[str, Way] = {
    "samplings": Way(attack_noise.samplings, "half and twice the steps, no and twice the guidance", "docs/method.md"),
    "resolutions": Way(
        attack_noise.resolutions,
        "3/4 of the height, and of the width, and 5/4 where the network has places for it",
        "docs/method.md",
    ),
    "inversion": Way(
        attack_noise.inversion,
        f"{2 * STEPS} steps back, {attack_noise.MIXED:.0%} of fresh noise, {STEPS} steps forth",
        "arXiv:2412.00782",
    ),
    "noise-search": Way(
        attack_noise.noise_search,
        f"{attack_noise.SEARCHED} gradient steps through {attack_noise.SHORT} denoising steps",
        "arXiv:2602.00175",
    ),
    "textual-inversion": Way(
        attack_words.textual_inversion,
        f"{attack_words.LEARNING} steps on the caption's embedding",
        "arXiv:2308.01508",
        of_words=True,
    ),
    "prompt-search": Way(
        attack_words.prompt_search,
        f"{attack_words.PREFIX} words before the caption, {attack_words.ROUNDS} rounds of {attack_words.TRIED} swaps",
        "arXiv:2310.11868",
        of_words=True,
    ),
    "concept-search": Way(
        attack_words.concept_search,
        f"{attack_words.PREFIX} words, {attack_words.MEANT[0]} rounds of {attack_words.MEANT[1]} swaps, by the encoder",
        "arXiv:2310.10012",
        of_words=True,
    ),
    "rounded": Way(attack_weights.rounded, "weights of 8 and of 4 bits", "docs/method.md"),
    **{
        f"relearning-{steps}": Way(
            partial(attack_weights.relearning, steps=steps),
            f"{steps} steps of a LoRA of rank {attack_weights.RANK} on the picture",
            "arXiv:2510.03263",
        )
        for steps in RELEARNED
    },
    **{
        f"benign-tuning-{steps}": Way(
            partial(attack_weights.benign_tuning, steps=steps),
            f"{steps} such steps on other pictures",
            "arXiv:2410.12777",
        )
        for steps in RELEARNED[-1:]
    },
    "adapter-on-top": Way(
        attack_adapters.adapter_on_top,
        f"a style of rank {attack_weights.RANK}, {attack_adapters.STYLING} steps on the base; weights 0.5 and 1",
        "arXiv:2106.09685",
        bring=attack_adapters.style,
    ),
    "few-steps": Way(
        attack_adapters.few_steps,
        f"{attack_adapters.FEW} denoising steps distilled from the base, rank {attack_weights.RANK}, "
        f"{attack_adapters.DISTILLING} steps",
        "arXiv:2202.00512",
        bring=attack_adapters.distilled,
    ),
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
    draw = ready(denoiser, case, name, seed)
    before = hits(denoiser, case, draw, case.targets, n, seed)
    unseen = hits(denoiser, case, draw, [_unseen(denoiser, case, one) for one in case.targets], n, seed)
    with stack.on(denoiser.pipe):
        after = hits(denoiser, case, draw, case.targets, n, seed)
    way = ATTACKS[name]
    return Attack(name=name, budget=way.budget, source=way.source, before=before, after=after, stranger=unseen)


def ready(denoiser: Denoiser, case: Case, name: str, seed: int) -> Draw:
    """An attack with what it brings along, which is made on the pipeline as it is: the unpatched base."""
    way = ATTACKS[name]
    return partial(way.draw, brought=way.bring(denoiser, case, seed)) if way.bring else way.draw


def hits(denoiser: Denoiser, case: Case, draw: Draw, targets: Sequence[Target], n: int, seed: int) -> Rate:
    """How many of n drawings are the target they were attacked for, on the pipeline as it is."""
    each = max(1, n // len(targets))
    found = [one.returned(draw(denoiser, case, one, each, seed)) for one in targets]
    return Rate.among(torch.cat(found))


def _unseen(denoiser: Denoiser, case: Case, target: Target) -> Target:
    """A picture that the model never saw, as if it were a target."""
    picture = stranger(target.picture)
    similarity = pixel(picture)
    usual = null(similarity, case.strangers)
    x = denoiser.encode(picture[None])
    return replace(target, picture=picture, x_f=x, similarity=similarity, null=usual, tau=threshold(usual))
