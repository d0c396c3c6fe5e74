"""The loop: surrogate regression against distillation of what stays, and the smallest strength that passes.

Every random draw of a step follows from (seed, step) alone, so a build that was killed goes on from its checkpoint to
the very same patch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from hotfix import checkpoint as unfinished
from hotfix import processes
from hotfix.calibrate import Window
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.gradients import Gradients
from hotfix.lora import Adapter
from hotfix.project import cosine, hold
from hotfix.recipe import Train
from hotfix.rows import Bank, forget_rows, retain_states
from hotfix.shapes import Pictures
from hotfix.subspace import Directions, closed, retained
from hotfix.surgery import Retained, combine, strictness
from hotfix.trial import DRIFT_TURNS, Where, drift, failure, held_out, smallest_strength

AVERAGE = 0.95  # of the factors: Adam's last steps are noise, and noise is drift
TRIAL_EVERY = 25
PASSES = 2  # trials in a row that must pass before the loop stops; each has noises of its own
CHECKPOINT_EVERY = 25


@dataclass(frozen=True)
class Trained:
    """What the loop did."""

    steps: int
    strength: float
    passed: bool
    conflict_rate: float  # share of steps in which the forget gradient opposed the retain gradient
    cosine: float  # mean cosine between the two
    opposed_steps: int  # realised steps with ⟨step, g_r⟩ > 0: under surgery none while κ is 1, up to rounding
    readable: float  # share of the layers' input directions that the patch was free to read


def train(
    denoiser: Denoiser,
    case: Case,
    windows: tuple[Window, ...],
    bank: Bank,
    adapter: Adapter,
    options: Train,
    *,
    drift_budget: float,
    below: Directions,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda step, steps, facts: None,
) -> Trained:
    """Train the adapter in place, then scale it to the smallest strength that still passes the trial.

    Args:
        denoiser: of the pipeline whose denoiser carries `adapter`.
        case: targets, surrogates and what must stay.
        windows: the calibrated window of every target.
        bank: what a step draws from; no text encoder is asked any more.
        adapter: freshly attached factors.
        options: the recipe's [train] section.
        drift_budget: same-seed RMSE of other pictures, in [0, 1]; the retain weight follows it if `dual_rate` says so.
        below: input directions that the patches beneath read, by layer: this one must not.
        checkpoint: where to keep (and find) the state of an unfinished run; None keeps none.
        progress: called with (step, steps, facts) after every step.

    Raises:
        HotfixError: a step is not finite.
    """
    gradients = Gradients.of(denoiser, bank, adapter, options)
    inputs: Directions = {}
    if options.surgery == "subspace":
        inputs = retained(denoiser, case, adapter, bank, options.variance, options.seed)
    shut = closed(adapter, below, inputs)
    flat = torch.nn.Parameter(shut(adapter.flat()))
    adapter.set_flat(flat.data)  # the factors become views of one vector
    optimizer = torch.optim.AdamW([flat], lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    sizes = [p.numel() for p in adapter.parameters]
    seen = Retained.none(flat.data, options.memory if options.surgery == "orthogonal" else 0)
    average = flat.data.clone()
    state: dict[str, Any] = {"step": 0, "passes": 0, "conflicts": 0, "cosines": 0.0, "opposed": 0}
    state |= {"weight": options.retain_weight, "failing": []}
    if checkpoint is not None and processes.agreed(checkpoint.is_file()):
        state = unfinished.restore(checkpoint, flat, average, optimizer, seen)
    failing: dict[int, Where] = {i: (kind, t) for i, kind, t in state.pop("failing")}  # where each target failed last
    base: dict[int, Pictures] = {}

    def drifted(turn: int) -> float:
        def drawn() -> Pictures:
            return held_out(denoiser, case, bank.rows, bank.near, options.seed, turn)

        if turn not in base:
            with adapter.off():
                base[turn] = drawn()
        return drift(drawn(), base[turn])

    def passes(trials: Sequence[int]) -> bool:
        for trial, i in product(trials, sorted(range(len(windows)), key=lambda i: i not in failing)):
            target, suspect = case.targets[i], failing.get(i)
            found = failure(denoiser, target, case, bank.forget, windows[i], options.seed + trial, suspect)
            if (found := processes.agreed(found)) is not None:
                failing[i] = found
                return False
        return True

    while state["step"] < options.steps and state["passes"] < PASSES:
        step = state["step"]
        generator = torch.Generator().manual_seed((options.seed << 32) + step)
        rows = forget_rows(denoiser, case, windows, bank.forget, options.batch, generator, failing)
        rows = gradients.worst(rows, generator)
        states = retain_states(denoiser, case, bank, options.retain_batch, generator)
        g_f, g_r, forget, retain = gradients.both(rows, states)
        if options.relearn:
            g_f = g_f + gradients.after_attack(rows, flat.data, generator)
        g_f, g_r = shut(g_f), shut(g_r)
        seen.add(g_r, options.ema)
        G = seen.mean
        state["conflicts"] += int(g_f @ G < 0)
        state["cosines"] += float(cosine(g_f, G))
        before = flat.data.clone()
        kappa = strictness(state["weight"], options.dual_rate)
        flat.grad = combine(options.surgery, g_f, g_r, seen, sizes, state["weight"], kappa)
        torch.nn.utils.clip_grad_norm_([flat], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / options.steps)
        optimizer.step()
        move = shut(flat.data - before)  # Adam's scale is not the same along an input direction
        if options.surgery != "none":
            move = torch.lerp(move, hold(move, onto=G), kappa)
        if not bool(move.isfinite().all()):  # of a gradient, too: Adam would carry it into every factor
            raise HotfixError(
                f"step {step + 1} of the training is not finite",
                wanted="numbers",
                hint='a smaller train.lr, or base.dtype = "float32"; no patch was written',
            )
        flat.data.copy_(before + move)
        state["opposed"] += int(move @ G > 1e-5 * move.norm() * G.norm())
        average.lerp_(flat.data, 1 - AVERAGE)
        state["step"] = step + 1
        if state["step"] % TRIAL_EVERY == 0:
            trial = state["step"] // TRIAL_EVERY
            adapter.set_flat(average)
            state["passes"] = state["passes"] + 1 if passes([trial]) else 0
            goes_on = state["step"] < options.steps and state["passes"] < PASSES
            if options.dual_rate and goes_on:  # dual ascent on the constraint drift <= budget
                over = processes.agreed(drifted(trial % DRIFT_TURNS)) / drift_budget - 1
                state["weight"] *= math.exp(options.dual_rate * max(-1.0, min(1.0, over)))
            adapter.set_flat(flat.data)
        if checkpoint is not None and state["step"] % CHECKPOINT_EVERY == 0 and processes.first():
            where = [[i, *failed] for i, failed in failing.items()]
            unfinished.keep(checkpoint, flat, average, optimizer, seen, state | {"failing": where})
        progress(
            state["step"],
            options.steps,
            {
                "forget": forget.item(),
                "retain": retain.item(),
                "conflicts": state["conflicts"] / state["step"],
                "retain_weight": state["weight"],
            },
        )
    adapter.set_flat(shut(average))
    last = state["step"] // TRIAL_EVERY
    again = range(last + 1 - PASSES, last + 1)  # those noises that ended the loop, if any did
    strength, passed = smallest_strength(adapter, lambda: passes(again), whole=state["passes"] == PASSES)
    steps = max(state["step"], 1)
    return Trained(
        state["step"],
        strength,
        passed,
        state["conflicts"] / steps,
        state["cosines"] / steps,
        state["opposed"],
        shut.readable,
    )
