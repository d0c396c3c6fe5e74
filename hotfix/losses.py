"""The two losses of a step: rows of noisy states, what each should head for, and the mean endpoint error.

Every draw comes from the generator that is handed in.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotfix import objective
from hotfix.calibrate import Window
from hotfix.case import Case
from hotfix.denoiser import Denoiser
from hotfix.lora import Adapter

KINDS = {"own": 0.4, "empty": 0.45, "random": 0.15}  # shares of the forget rows
NEIGHBOURS = 32  # retain pictures nearest to a target: they drift first
NEAR, BARE, STEADY, PURE_NOISE = 0.4, 0.4, 0.1, 0.15  # shares of the retain rows

Conditions = Mapping[str, Mapping[str, Tensor]]


def neighbours(case: Case) -> Tensor:
    """Rows of the bank nearest to any target."""
    near = min(NEIGHBOURS, len(case.retain))
    return torch.cat([one.similarity(case.retain).topk(near).indices for one in case.targets])


def forget_loss(
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
        anywhere = 1 - torch.rand(1, generator=generator)  # down to t = 0: the base cannot finish what it never saw
        t.append(anywhere if from_surrogate else windows[which].sample(kind, 1, generator))
        row = int(torch.randint(max(map(len, conditions[kind].values()), default=1), (), generator=generator))
        picked.append({k: v[row] for k, v in conditions[kind].items()})
    return _endpoint_loss(denoiser, torch.stack(x), torch.stack(target), torch.cat(t), _stack(picked), generator)


def retain_loss(
    denoiser: Denoiser,
    case: Case,
    near_rows: Tensor,
    rows: Mapping[str, Tensor],
    adapter: Adapter,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Distillation to the unpatched model: bank pictures (half of them neighbours of a target), pure noise, and x_s."""
    device = case.x_r.device
    pick = torch.randint(len(case.x_r), (count,), generator=generator)
    near = torch.rand(count, generator=generator) < NEAR
    pick = torch.where(near, near_rows[torch.randint(len(near_rows), (count,), generator=generator)], pick)
    x = case.x_r[pick.to(device)].clone()
    condition = {k: v[pick.to(v.device)] for k, v in rows.items()}
    empty = denoiser.embed([""])
    bare = torch.rand(count, generator=generator) < BARE
    surrogates = torch.cat([one.x_s for one in case.targets])
    steady = torch.rand(count, generator=generator) < STEADY
    x[steady] = surrogates[torch.randint(len(surrogates), (int(steady.sum()),), generator=generator).to(device)]
    for key, value in empty.items():
        condition[key][bare | steady] = value[0]
    t = torch.rand(count, generator=generator).clamp_min(1e-3)
    t[torch.rand(count, generator=generator) < PURE_NOISE] = 1.0
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
