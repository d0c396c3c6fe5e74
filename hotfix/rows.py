"""Rows of a step: noisy states to forget from and to retain, and what each of them should head for.

Every draw comes from the generator that is handed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from hotfix import objective
from hotfix.calibrate import FLOOR, Window
from hotfix.case import Case, Target
from hotfix.denoiser import Denoiser, sample
from hotfix.shapes import Latents
from hotfix.trial import Where

KINDS = {"own": 0.35, "empty": 0.45, "random": 0.6}  # forget rows, each times the height of its window
FINISH = 0.4  # share of the rows under its own caption that a sampler comes to from pure noise: noised from x_s itself
WALKING = 0.5  # share of the others that the patched sampler goes on with before they are looked at
FAILING = 0.5  # share of the rows where the last trial failed,
NEARBY = 0.05  # up to so far from its level
AS_IT_IS = 0.5  # share of the rows on the forget picture itself, where there are views of it
LEANING = 0.3  # share of the rows that lean towards an adjacent picture, where there are some
FARTHEST = 0.5  # longest shift, in units of ‖x_s - x_f‖: about what GUIDE allows
NEIGHBOURS = 32  # retain pictures nearest to a target: they drift first
NEAR, BARE, PURE_NOISE = 0.4, 0.4, 0.15  # shares of the retain rows

Conditions = Mapping[str, Mapping[str, Tensor]]


def neighbours(case: Case) -> Tensor:
    """Rows of the bank nearest to any target."""
    near = min(NEIGHBOURS, len(case.retain))
    return torch.cat([one.similarity(case.retain).topk(near).indices for one in case.targets])


@dataclass(frozen=True)
class Bank:
    """What every step draws from, encoded: the text encoders are asked once for a whole build."""

    others: Latents  # what must stay, without what draws a target
    near: Tensor  # rows nearest to any target
    rows: Mapping[str, Tensor]  # the condition of every picture
    empty: Mapping[str, Tensor]  # of no caption
    forget: Conditions  # kind of caption -> conditions under which the target is forgotten

    @classmethod
    def of(cls, denoiser: Denoiser, case: Case) -> Self:
        """Of a case, with the pipeline's own encoders."""
        rows, empty = denoiser.embed(case.retain_captions), denoiser.embed([""])
        place = {caption: i for i, caption in enumerate(case.retain_captions)}

        def encoded(captions: Sequence[str]) -> Mapping[str, Tensor]:
            if not place.keys() >= set(captions):
                return denoiser.embed(captions)
            return {key: value[[place[caption] for caption in captions]] for key, value in rows.items()}

        forget = {kind: encoded(captions) for kind, captions in case.forget_kinds().items()}
        return cls(case.others[0], neighbours(case), rows, empty, forget)


@dataclass(frozen=True)
class ForgetRows:
    """What the forget loss is taken on: B noisy states and where each should head for."""

    x_t: Latents
    begun: Tensor  # (B,) noise level of x_t
    t: Tensor  # (B,) level at which the loss is taken: where it is lower, the patched sampler goes there first
    condition: Mapping[str, Tensor]
    x: Latents  # what is noised to x_t,
    eps: Latents  # and with what
    x_f: Latents
    x_s: Latents
    finishing: Tensor  # (B,) bool: noised not from x_f but from x_s
    blended: list[Latents | None]  # (K, C, H, W) of every row: head for their posterior mean, not for x_s

    def noised_with(self, denoiser: Denoiser, eps: Latents) -> "ForgetRows":
        """The same rows under another noise."""
        return replace(self, x_t=denoiser.noised(self.x, self.begun, eps), eps=eps)

    def __getitem__(self, rows: slice) -> "ForgetRows":
        """Some of them."""
        some = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "condition"}
        return replace(self, condition={key: value[rows] for key, value in self.condition.items()}, **some)

    def split(self, at_once: int) -> "list[ForgetRows]":
        """All of them in parts of so many rows; 0 is one part."""
        rows = len(self.x)
        return [self[first : first + (at_once or rows)] for first in range(0, rows, at_once or rows)]


def forget_rows(
    denoiser: Denoiser,
    case: Case,
    windows: Sequence[Window],
    conditions: Conditions,
    rows: int,
    generator: torch.Generator,
    failing: Mapping[int, Where] = MappingProxyType({}),
) -> ForgetRows:
    """Draw states noised from x_f, many of which the patched sampler then takes to any level below.

    Below t_lo, too: nobody need be turned there who begins there, but who began above and has turned must not be pulled
    back by a base that knows only x_f. Under the target's own caption many are where drawings from pure noise end.

    Half of a target's rows begin where its last trial failed (`failing`, by the target's number): often a corner of
    what the windows spread rows over. Where that is pure noise, it says the kind of caption alone.

    A target with views is shown as one of them in half of the rows; one with adjacent pictures leans towards one of
    those in some, and its surrogate by as much.
    """
    kinds = [kind for kind in KINDS if kind in conditions]
    # Under a caption that never leads the base to x_f there is nothing to forget, and only other pictures to lose.
    shares = [torch.tensor([KINDS[kind] * float(window.m[kind].max()) for kind in kinds]) for window in windows]
    x, x_f, x_s, begun, t, finishing, blended, picked = [], [], [], [], [], [], [], []
    for _ in range(rows):
        which = int(torch.randint(len(case.targets), (), generator=generator))
        kind = kinds[int(torch.multinomial(shares[which] + FLOOR, 1, generator=generator))]
        kind, level = _begun(windows[which], kind, failing.get(which), generator)
        one, first = case.targets[which], level
        look = _look(one, generator)
        shift = _shift(one, look, generator)
        now, all_s = look.x_f[0] + shift, look.x_s + shift
        instead = all_s[torch.randint(len(all_s), (), generator=generator)]
        walk, walks, finishes = torch.rand(3, generator=generator).tolist()
        finished = kind == "own" and finishes < FINISH  # from pure noise
        if finished:
            first = level = 1 - torch.rand(1, generator=generator)
        elif walks < WALKING:
            level = first * (1 - walk)
        x.append(instead if finished else now)
        x_f.append(now)
        x_s.append(instead)
        begun.append(first)
        t.append(level)
        finishing.append(finished)
        blended.append(all_s if one.blend else None)
        picked.append(sample(conditions[kind], 1, generator)[0])
    start = torch.stack(x)
    first, level = (torch.cat(levels).to(start.device) for levels in (begun, t))
    eps = torch.randn(start.shape, generator=generator).to(start.device)
    return ForgetRows(
        denoiser.noised(start, first, eps),
        first,
        level,
        {key: torch.cat([row[key] for row in picked]) for key in picked[0]},
        start,
        eps,
        torch.stack(x_f),
        torch.stack(x_s),
        torch.tensor(finishing, device=start.device),
        blended,
    )


def _begun(window: Window, kind: str, failed: Where | None, generator: torch.Generator) -> tuple[str, Tensor]:
    """The kind of caption and the noise level, (1,), at which a row begins: as calibrated, or where a trial failed."""
    if failed is not None and float(torch.rand((), generator=generator)) < FAILING:
        kind, level = failed
        if level < 1:
            return kind, (level + NEARBY * (2 * torch.rand(1, generator=generator) - 1)).clamp(max=1)
    return kind, window.sample(kind, 1, generator)


def _look(one: Target, generator: torch.Generator) -> Target:
    """The forget picture as it is, or one of its views."""
    if not one.views or float(torch.rand((), generator=generator)) < AS_IT_IS:
        return one
    return one.views[int(torch.randint(len(one.views), (), generator=generator))]


def _shift(one: Target, look: Target, generator: torch.Generator) -> Latents:
    """A random small step towards an adjacent picture, or none, broadcastable to (C, H, W)."""
    if one.adjacent is None or float(torch.rand((), generator=generator)) >= LEANING:
        return torch.zeros((), device=look.x_f.device)
    other = one.adjacent[int(torch.randint(len(one.adjacent), (), generator=generator))]
    most = FARTHEST * float((look.x_s - look.x_f).flatten(1).norm(dim=1).min())
    return objective.adjacency(look.x_f[0], other, most * float(torch.rand((), generator=generator)))


def retain_states(
    denoiser: Denoiser,
    case: Case,
    bank: Bank,
    count: int,
    generator: torch.Generator,
) -> tuple[Latents, Tensor, dict[str, Tensor]]:
    """Noisy states x_t, their levels t and conditions: bank pictures (many of them neighbours) and pure noise.

    The surrogates are not among them: the unpatched model turns x_s back into x_f where the two are alike.
    """
    device = case.x_r.device
    pick = torch.randint(len(case.x_r), (count,), generator=generator)
    near = torch.rand(count, generator=generator) < NEAR
    pick = torch.where(near, bank.near[torch.randint(len(bank.near), (count,), generator=generator)], pick)
    x = case.x_r[pick.to(device)]
    condition = {k: v[pick.to(v.device)] for k, v in bank.rows.items()}
    bare = torch.rand(count, generator=generator) < BARE
    for key, value in bank.empty.items():
        condition[key][bare] = value[0]
    t = torch.rand(count, generator=generator).clamp_min(1e-3)
    t[torch.rand(count, generator=generator) < PURE_NOISE] = 1.0
    t = t.to(device)
    return denoiser.noised(x, t, torch.randn(x.shape, generator=generator).to(device)), t, condition
