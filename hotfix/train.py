"""The loop: surrogate regression against retain distillation, one-sided surgery, and the smallest strength that passes.

Every random draw of a step follows from (seed, step) alone, so a build that was killed goes on from its checkpoint to
the very same patch.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from hotfix import objective
from hotfix.calibrate import Window
from hotfix.case import Case
from hotfix.container import write_atomically
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter
from hotfix.project import cosine, hold, project
from hotfix.recipe import Train
from hotfix.shapes import Flat
from hotfix.trial import trial

KINDS = {"own": 0.4, "empty": 0.3, "random": 0.3}
EMA = 0.9  # of the retain gradient: one batch of it is too noisy to project on
TRIAL_EVERY = 25
NEIGHBOURS = 32  # retain pictures nearest to a target: they drift first
PASSES = 2  # trials in a row that must pass before the loop stops
CHECKPOINT_EVERY = 25
STRONGEST = 1.25
BISECTIONS = 4

Conditions = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Trained:
    """What the loop did."""

    steps: int
    strength: float
    passed: bool
    conflict_rate: float  # share of steps in which the forget gradient opposed the retain gradient
    cosine: float  # mean cosine between the two
    opposed_steps: int  # realised steps with ⟨step, g_r⟩ > 0 after projection: 0, up to rounding


def train(
    denoiser: Denoiser,
    case: Case,
    windows: tuple[Window, ...],
    adapter: Adapter,
    options: Train,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda step, steps, facts: None,
) -> Trained:
    """Train the adapter in place, then scale it to the smallest strength that still passes the trial.

    Args:
        denoiser: of the pipeline whose denoiser carries `adapter`.
        case: targets, surrogates and what must stay.
        windows: the calibrated window of every target.
        adapter: freshly attached factors.
        options: the recipe's [train] section.
        checkpoint: where to keep (and find) the state of an unfinished run; None keeps none.
        progress: called with (step, steps, facts) after every step.
    """
    accelerator = Accelerator()
    conditions = {kind: denoiser.embed(captions) for kind, captions in case.caption_kinds().items()}
    retain_rows = denoiser.embed(case.retain_captions)
    near = min(NEIGHBOURS, len(case.retain))
    neighbours = torch.cat([one.similarity(case.retain).topk(near).indices for one in case.targets])
    flat = torch.nn.Parameter(adapter.flat())
    adapter.set_flat(flat.data)  # the factors become views of one vector
    optimizer = torch.optim.AdamW([flat], lr=options.lr, betas=(0.9, 0.99), weight_decay=0.0)
    G = torch.zeros_like(flat.data)
    state = {"step": 0, "passes": 0, "conflicts": 0, "cosines": 0.0, "opposed": 0}
    if checkpoint is not None and checkpoint.is_file():
        state = _restore(checkpoint, flat, optimizer, G)

    def passes() -> float:
        worst = -1.0
        for target, window in zip(case.targets, windows, strict=True):
            worst = max(worst, trial(denoiser, target, conditions, window, options.seed))
        return worst

    while state["step"] < options.steps and state["passes"] < PASSES:
        step = state["step"]
        generator = torch.Generator().manual_seed((options.seed << 32) + step)
        forget = _forget_loss(denoiser, case, windows, conditions, options.batch, generator)
        g_f = _gradient(forget, adapter, accelerator)
        retain = _retain_loss(denoiser, case, neighbours, retain_rows, adapter, options.retain_batch, generator)
        g_r = _gradient(retain, adapter, accelerator)
        G = EMA * G + (1 - EMA) * g_r
        state["conflicts"] += int(g_f @ G < 0)
        state["cosines"] += float(cosine(g_f, G))
        before = flat.data.clone()
        flat.grad = project(g_f, onto=G) + options.retain_weight * g_r
        torch.nn.utils.clip_grad_norm_([flat], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / options.steps)
        optimizer.step()
        move = hold(flat.data - before, onto=G)
        flat.data.copy_(before + move)
        state["opposed"] += int(move @ G > 1e-5 * move.norm() * G.norm())
        state["step"] = step + 1
        if state["step"] % TRIAL_EVERY == 0:
            state["passes"] = state["passes"] + 1 if passes() <= 0 else 0
        if checkpoint is not None and state["step"] % CHECKPOINT_EVERY == 0:
            _keep(checkpoint, flat, optimizer, G, state)
        progress(
            state["step"],
            options.steps,
            {"forget": forget.item(), "retain": retain.item(), "conflicts": state["conflicts"] / state["step"]},
        )
    strength, passed = _smallest_strength(adapter, passes)
    steps = max(state["step"], 1)
    return Trained(
        state["step"], strength, passed, state["conflicts"] / steps, state["cosines"] / steps, state["opposed"]
    )


def _gradient(loss: Tensor, adapter: Adapter, accelerator: Accelerator) -> Flat:
    grads = torch.autograd.grad(loss, adapter.parameters)
    return accelerator.reduce(torch.cat([g.flatten() for g in grads]), reduction="mean")


def _forget_loss(
    denoiser: Denoiser,
    case: Case,
    windows: tuple[Window, ...],
    conditions: Conditions,
    rows: int,
    generator: torch.Generator,
) -> Tensor:
    """x_t noised from x_f, endpoint x_s. Under its own caption half of the rows are noised from x_s instead.

    Those are the states that the patched sampler really visits once it has turned towards x_s; without them the base
    pulls it back half-way.
    """
    kinds = [kind for kind in KINDS if kind in conditions]
    share = torch.tensor([KINDS[kind] for kind in kinds])
    x, target, t, picked = [], [], [], []
    for choice in torch.multinomial(share, rows, replacement=True, generator=generator).tolist():
        which = int(torch.randint(len(case.targets), (), generator=generator))
        one, kind = case.targets[which], kinds[choice]
        x_s = one.x_s[torch.randint(len(one.x_s), (), generator=generator)]
        from_surrogate = kind == "own" and torch.rand((), generator=generator) < 0.5
        x.append(x_s if from_surrogate else one.x_f[0])
        target.append(x_s)
        t.append(windows[which].sample(kind, 1, generator))
        row = int(torch.randint(max(map(len, conditions[kind].values()), default=1), (), generator=generator))
        picked.append({k: v[row] for k, v in conditions[kind].items()})
    return _endpoint_loss(denoiser, torch.stack(x), torch.stack(target), torch.cat(t), _stack(picked), generator)


def _retain_loss(
    denoiser: Denoiser,
    case: Case,
    neighbours: Tensor,
    rows: Mapping[str, Tensor],
    adapter: Adapter,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Distillation to the unpatched model: bank pictures (half of them neighbours of a target), pure noise, and x_s."""
    device = case.x_r.device
    pick = torch.randint(len(case.x_r), (count,), generator=generator)
    near = torch.rand(count, generator=generator) < 0.4
    pick = torch.where(near, neighbours[torch.randint(len(neighbours), (count,), generator=generator)], pick)
    x = case.x_r[pick.to(device)].clone()
    condition = {k: v[pick.to(v.device)] for k, v in rows.items()}
    empty = denoiser.embed([""])
    bare = torch.rand(count, generator=generator) < 0.4
    surrogates = torch.cat([one.x_s for one in case.targets])
    steady = torch.rand(count, generator=generator) < 0.1
    x[steady] = surrogates[torch.randint(len(surrogates), (int(steady.sum()),), generator=generator).to(device)]
    for key, value in empty.items():
        condition[key][bare | steady] = value[0]
    t = torch.rand(count, generator=generator).clamp_min(1e-3)
    t[torch.rand(count, generator=generator) < 0.15] = 1.0
    t = t.to(device)
    x_t = denoiser.noised(x, t, torch.randn(x.shape, generator=generator).to(device))
    with torch.no_grad(), adapter.off():
        teacher = denoiser.x_hat(x_t, t, condition)
    return objective.endpoint(denoiser.x_hat(x_t, t, condition), teacher, denoiser.schedule(t)[0]).mean()


def _endpoint_loss(
    denoiser: Denoiser,
    x: Tensor,
    target: Tensor,
    t: Tensor,
    condition: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    t = t.to(x.device)
    x_t = denoiser.noised(x, t, torch.randn(x.shape, generator=generator).to(x.device))
    return objective.endpoint(denoiser.x_hat(x_t, t, condition), target, denoiser.schedule(t)[0]).mean()


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def _smallest_strength(adapter: Adapter, trial: Callable[[], float]) -> tuple[float, bool]:
    """Bisect for the smallest strength that passes, and leave the adapter at it."""
    now = 1.0

    def passes_at(strength: float) -> bool:
        nonlocal now
        adapter.scale(strength / now)
        now = strength
        return trial() <= 0

    high = next((s for s in (1.0, STRONGEST) if passes_at(s)), None)
    if high is None:
        adapter.scale(1.0 / now)
        return 1.0, False
    low = high / 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if passes_at(middle) else (middle, high)
    adapter.scale(high / now)
    return high, True


def _keep(path: Path, flat: Tensor, optimizer: torch.optim.Optimizer, G: Tensor, state: Mapping[str, float]) -> None:
    moments = optimizer.state[flat]
    tensors = {"flat": flat.data, "G": G, "m": moments["exp_avg"], "v": moments["exp_avg_sq"], "n": moments["step"]}
    write_atomically(path, dump_tensors(tensors, {"state": json.dumps(state)}))


def _restore(path: Path, flat: Tensor, optimizer: torch.optim.Optimizer, G: Tensor) -> dict[str, float]:
    raw = path.read_bytes()
    tensors = parse_tensors(raw)
    flat.data.copy_(tensors["flat"])
    G.copy_(tensors["G"])
    optimizer.state[flat] = {"exp_avg": tensors["m"], "exp_avg_sq": tensors["v"], "step": tensors["n"]}
    return json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["state"])
