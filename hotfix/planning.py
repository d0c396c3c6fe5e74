"""Plan: what a build will take in memory and time, before it does anything. It writes nothing.

Memory is counted from shapes, but for what a step keeps for its backward pass: that is counted while a loss is taken.
Time is measured on a few real steps, on stand-ins for the pictures that a build would draw first.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hotfix import calibrate, cost, lora, need, offload, pictures, surrogate, trial
from hotfix.aside import aside
from hotfix.bank import bank_captions, bank_steps, drawn_captions
from hotfix.building import FEWER, NOTHING, frozen
from hotfix.calibrate import Window, chosen
from hotfix.case import Case, Target
from hotfix.compiled import compiled
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.losses import forget_loss, retain_loss
from hotfix.need import Need
from hotfix.recipe import Recipe
from hotfix.rows import Bank, forget_rows, retain_states
from hotfix.similarity import pixel, stranger
from hotfix.stack import Stack
from hotfix.train import PASSES, TRIAL_EVERY, train
from hotfix.weights import stored

STEPS = 3  # that are timed, after one that is not
KEPT = "kept for the backward pass"
UNTIMED = ("inpaint", "latent", "editor")  # surrogates that take as long as they take

Work = tuple[int, int]  # rows through the network, pictures through the VAE


@dataclass(frozen=True)
class Plan:
    """What a build will take, on this machine and in seconds of now."""

    parameters: int  # that are trained
    layers: int  # that they act on
    steps: int  # at most
    fewest_steps: int  # the loop may stop from here on
    weights: int  # bytes of the base, which is loaded already
    need: Need  # beside it
    free: int  # bytes where the network is
    free_host: int
    seconds_of_step: float  # median
    seconds_before: float  # drawing what must stay, calibrating the window, edits by the base
    seconds_of_trials: float  # at most: a trial ends at its first failure, and draws less where the bar is far
    surrogates_timed: bool  # whether theirs are among the seconds before

    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "parameters": self.parameters,
            "layers": self.layers,
            "steps_at_most": self.steps,
            "steps_at_least": self.fewest_steps,
            "device": str(self.need.device),
            "bytes": {"base weights": self.weights, **self.need.there},
            "host_bytes": dict(self.need.host),
            "free_bytes": self.free,
            "free_host_bytes": self.free_host,
            "seconds_of_step": round(self.seconds_of_step, 4),
            "seconds_before_training": round(self.seconds_before, 1),
            "surrogates_timed": self.surrogates_timed,
            "seconds_of_training_at_most": round(self.steps * self.seconds_of_step, 1),
            "seconds_of_trials_at_most": round(self.seconds_of_trials, 1),
        }

    def __str__(self) -> str:
        there, host = ("GPU", "host") if self.need.device.type == "cuda" else ("memory", "memory")
        training = self.steps * self.seconds_of_step
        rows = [
            ("trains", f"{self.parameters:,} parameters on {self.layers} layers"),
            (
                "steps",
                f"{self.steps} at most; trials that are passed may end them, at step {self.fewest_steps} or later",
            ),
            (there, f"{cost.gib(self.weights)}  base weights, loaded already"),
            *((there, f"{cost.gib(size)}  {part}") for part, size in self.need.there.items()),
            *((host, f"{cost.gib(size)}  {part}") for part, size in self.need.host.items()),
            ("free", f"{cost.gib(self.free)}" + (f", host {cost.gib(self.free_host)}" if host == "host" else "")),
            ("before", f"about {self.seconds_before:.0f} s to draw what must stay and calibrate the window"),
            *([] if self.surrogates_timed else [("", "and the surrogates, which cannot be timed beforehand")]),
            ("training", f"{self.seconds_of_step:.3f} s a step (median of {STEPS}), {training:.0f} s at most"),
            ("trials", f"{self.seconds_of_trials:.0f} s at most"),
        ]
        return "\n".join(f"{key:<9} {words}" for key, words in rows)


def plan(recipe: Recipe, pipe: Any, *, stack: Stack = NOTHING) -> Plan:
    """Count and probe; the pipeline comes back bit-identical.

    Args:
        recipe: what would be built.
        pipe: its base.
        stack: patches that it would be built on.

    Raises:
        HotfixError: it cannot fit in the memory that is free.
        RecipeError: the recipe or its pictures cannot be used.
    """
    denoiser, options = Denoiser(pipe, recipe.base.call), recipe.train
    offload.refuse_pieces(denoiser.model)
    targets = options.targets or denoiser.targets
    with (
        stack.on(pipe),
        frozen(denoiser, options.gradient_checkpointing),
        compiled(denoiser.model, options.compile),
        lora.attached(denoiser.model, targets, options.rank, options.seed) as adapter,
    ):
        wanted = need.of(recipe, denoiser, adapter)
        wanted.check()
        with cost.enough("one step", FEWER):
            stand_in, windows = _stand_in(recipe, denoiser)
            bank = Bank.of(denoiser, stand_in)
            with aside(denoiser):
                kept = _kept(recipe, denoiser, stand_in, windows, bank, adapter)
                step = _step(recipe, denoiser, stand_in, windows, bank, adapter)
                row, picture = _row(recipe, denoiser, stand_in, bank, adapter)
        parameters = sum(p.numel() for p in adapter.parameters)
        layers = len(adapter.places())
    kinds = list(stand_in.forget_kinds())

    def seconds(work: Work) -> float:
        return work[0] * row + work[1] * picture

    return Plan(
        parameters=parameters,
        layers=layers,
        steps=options.steps,
        fewest_steps=min(options.steps, PASSES * TRIAL_EVERY),
        weights=need.weights(pipe),
        need=replace(wanted, there={**wanted.there, KEPT: kept}),
        free=cost.free(denoiser.device),
        free_host=cost.free(),
        seconds_of_step=step,
        seconds_before=seconds(before(recipe, denoiser, kinds)),
        seconds_of_trials=seconds(trials(recipe, denoiser, kinds)),
        surrogates_timed=recipe.surrogate.kind not in UNTIMED,
    )


# Counted


def before(recipe: Recipe, denoiser: Denoiser, kinds: list[str]) -> Work:
    """The bank, t_lo (at most), the windows, and the base's own edits."""
    bank, forgets = len(bank_captions(recipe, denoiser)), len(recipe.files(recipe.forget.images, "forget.images"))
    drawn = len(drawn_captions(recipe, denoiser))
    each = calibrate.GRID * calibrate.NOISES
    if recipe.train.weight == "calibrated":
        levels = range(1, calibrate.GRID + 1)
        drawings = sum(math.ceil(calibrate.STEPS * level / calibrate.GRID) for level in levels)
        each += len(kinds) * drawings * calibrate.NOISES
    edits = (surrogate.BISECTIONS + 2) * surrogate.CANDIDATES if recipe.surrogate.kind == "sdedit" else 0
    rows = drawn * bank_steps(denoiser) * _asked(denoiser) + forgets * (each + edits * surrogate.STEPS)
    return rows, drawn + bank + forgets * (each + edits)


def trials(recipe: Recipe, denoiser: Denoiser, kinds: list[str]) -> Work:
    """All of them, if each comes close and ends in a pass, with the drift watched between them and the bisection."""
    noises = trial.NOISES + trial.MORE
    rows = pictures = 0
    for kind in kinds:
        own = kind == "own"
        for level in (*([1.0] if own else []), trial.HIGHEST, (trial.LOWEST + trial.HIGHEST) / 2, trial.LOWEST):
            rows += noises * math.ceil(trial.STEPS * level) * (_asked(denoiser) if own else 1)
            pictures += noises
    rounds = recipe.train.steps // TRIAL_EVERY
    times = (rounds + PASSES * (1 + trial.BISECTIONS)) * len(recipe.files(recipe.forget.images, "forget.images"))
    drifts = (rounds + min(rounds, trial.DRIFT_TURNS)) * trial.DRIFT_ROWS if recipe.train.dual_rate else 0
    return times * rows + drifts * bank_steps(denoiser) * _asked(denoiser), times * pictures + drifts


def _asked(denoiser: Denoiser) -> int:
    """How often the network is asked in a step of a guided drawing."""
    return 1 if denoiser.guidance == 1.0 else 2


# Probed


class _Enough(Exception):
    """The last step that is timed is done."""


def _stand_in(recipe: Recipe, denoiser: Denoiser) -> tuple[Case, tuple[Window, ...]]:
    """A case of the right shapes: the first forget picture, and its stranger for everything else."""
    picture = pictures.load(recipe.files(recipe.forget.images, "forget.images"), denoiser.size)[0]
    other = stranger(picture)[None]
    x_f, x_s = denoiser.encode(picture[None]), denoiser.encode(other)
    target = Target(picture, other, x_f, x_s, pixel(picture), null=0.0, tau=1.0, t_lo=0.0)
    captions = tuple(bank_captions(recipe, denoiser)[: recipe.train.retain_batch])
    n = len(captions)
    bank, x_r = other.expand(n, -1, -1, -1), x_s.expand(n, -1, -1, -1)
    made = Case((target,), tuple(recipe.forget.captions), captions, bank, x_r, torch.zeros(n, dtype=torch.bool))
    made = replace(made, scope=recipe.forget.scope)
    return made, (chosen(denoiser, made.forget_kinds(), "uniform", recipe.train.window, 0.0),)


def _kept(
    recipe: Recipe, denoiser: Denoiser, stand_in: Case, windows: tuple[Window, ...], bank: Bank, adapter: Adapter
) -> int:
    """Bytes that the larger of the two losses keeps, of as many rows as are learnt from at once.

    Temporary results of a pass come on top.
    """
    options, generator = recipe.train, torch.Generator().manual_seed(0)
    batch, retain_batch = (min(options.micro_batch or n, n) for n in (options.batch, options.retain_batch))
    rows = forget_rows(denoiser, stand_in, windows, bank.forget, batch, generator)
    states = retain_states(denoiser, stand_in, bank, retain_batch, generator)
    return max(
        kept(denoiser.model, lambda: forget_loss(denoiser, bank, adapter, rows, options)),
        kept(denoiser.model, lambda: retain_loss(denoiser, adapter, *states)),
    )


def kept(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of a loss, the weights of the model not among them."""
    own = {place for p in model.parameters() for place in stored(p)}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not isinstance(whole, nn.Parameter):  # a weight that processes share out lies elsewhere while it is gathered
            seen.update((place, size) for place, size in stored(tensor).items() if place not in own)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()  # while it lives, so does what it keeps, and no two share an address
    del held
    return sum(seen.values())


def _step(
    recipe: Recipe, denoiser: Denoiser, stand_in: Case, windows: tuple[Window, ...], bank: Bank, adapter: Adapter
) -> float:
    """Seconds of a step of the loop itself, median."""
    clock: list[float] = []

    def progress(step: int, steps: int, facts: Mapping[str, float]) -> None:
        clock.append(time.perf_counter())
        if step > STEPS:
            raise _Enough

    options = recipe.train.model_copy(update={"steps": STEPS + 2, "dual_rate": 0.0})
    with suppress(_Enough):
        train(denoiser, stand_in, windows, bank, adapter, options, drift_budget=1.0, below={}, progress=progress)
    return statistics.median(then - now for now, then in pairwise(clock))


@torch.no_grad()
def _row(recipe: Recipe, denoiser: Denoiser, stand_in: Case, bank: Bank, adapter: Adapter) -> tuple[float, float]:
    """Seconds of one row through the unpatched network, and of one picture out of the VAE."""
    generator, n = torch.Generator().manual_seed(0), recipe.train.retain_batch
    x_t, t, condition = retain_states(denoiser, stand_in, bank, n, generator)

    def seconds(work: Callable[[], Tensor]) -> float:
        took = []
        for _ in range(STEPS + 1):
            started = time.perf_counter()
            work().cpu()  # which waits for an accelerator
            took.append(time.perf_counter() - started)
        return statistics.median(took[1:]) / n

    with adapter.off():
        row = seconds(lambda: denoiser.predict(x_t, t, condition))
    return row, seconds(lambda: denoiser.decode(x_t)) if denoiser.vae is not None else 0.0
