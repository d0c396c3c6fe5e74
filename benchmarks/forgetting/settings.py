"""Settings: every method, and every way of running it.

- hotfix: the default recipe, the same for every target.
- A rival as published, where its steps and rate are known to us: its batch, its way of training, the target's own
  captions. Where they are not, the sweep decides.
- A rival at equal compute: every value of its knob at every rate, in LoRA of hotfix's rank, and in full where the
  original is full; hotfix's batch, and hotfix's three kinds of captions. It stops at the cost of hotfix's own build on
  that target with that seed. ESD is spared other pictures' captions: it drives away from the caption it is given. So
  are those that head for the surrogate at any noise level: hotfix trains under such captions inside its window only.
- Ablations: hotfix with one thing changed, in the recipe (`ablations`) or in the loop itself (`PARTS`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from benchmarks.forgetting.targets import Target
from benchmarks.rivals import (
    duo,
    erasediff,
    esd,
    munba,
    negated_lora,
    negative_gradient,
    plain,
    retrack,
    selective_amnesia,
    siss,
)
from benchmarks.rivals.ways import Mode
from hotfix.recipe import Train

MODULES = (
    negative_gradient,
    erasediff,
    siss,
    negated_lora,
    esd,
    duo,
    retrack,
    selective_amnesia,
    munba,
    plain,
)
RIVALS: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in MODULES}
RATES: dict[Mode, tuple[float, ...]] = {"lora": (1e-4, 6e-4, 4e-3), "full": (5e-6, 5e-5, 5e-4)}
ROWS, RANK = Train().batch, Train().rank  # hotfix's own
PUBLISHED_RANK = {"duo": 32}
HOTFIX, ABLATION, DEFAULT, PUBLISHED = "hotfix", "ablation", "default", "published"

# Label -> a name in hotfix, and what it is instead: parts of the loop that no recipe turns off.
PARTS: dict[str, tuple[str, Any]] = {
    "failing=0": ("hotfix.rows.FAILING", 0.0),
    "walking=0": ("hotfix.rows.WALKING", 0.0),
    "finish=0": ("hotfix.rows.FINISH", 0.0),
    "average=0": ("hotfix.train.AVERAGE", 0.0),
    "bank_steps=8": ("hotfix.bank.STEPS", 8),
    "margin=0": ("hotfix.trial.MARGIN", 0.0),
}


@dataclass(frozen=True)
class Setting:
    """One way of running a rival."""

    mode: Mode
    lr: float
    rows: int
    knob: Mapping[str, Any]
    steps: int | None = None  # as many as hotfix's compute pays for
    rank: int = RANK

    @property
    def published(self) -> bool:
        """The paper's numbers, captions included."""
        return self.steps is not None


def settings(method: str) -> dict[str, Setting]:
    """Every setting of a rival, by label."""
    rival = RIVALS[method]
    found = {}
    if rival.STEPS is not None and rival.LR is not None:
        rank = PUBLISHED_RANK.get(method, RANK)
        found[PUBLISHED] = Setting(rival.MODE, rival.LR, rival.BATCH, {}, rival.STEPS, rank)
    modes: tuple[Mode, ...] = ("lora", "full") if rival.MODE == "full" else ("lora",)
    for mode in modes:
        for lr in RATES[mode]:
            for value in rival.SWEEP:
                found[label(method, mode, lr, value)] = Setting(mode, lr, ROWS, {rival.KNOB: value})
    return found


def label(method: str, mode: Mode, lr: float, value: Any) -> str:
    """The name of a setting of the sweep: part of a file's path."""
    return f"{mode},lr={lr:g},{RIVALS[method].KNOB}={value}"


def middle(method: str) -> str:
    """The one setting of a quick run: LoRA, the middle rate, the middle of the knob."""
    return label(method, "lora", RATES["lora"][1], RIVALS[method].SWEEP[len(RIVALS[method].SWEEP) // 2])


def changes(target: Target) -> list[str]:
    """The labels of all ablations."""
    return [*ablations(target), *PARTS]


def ablations(target: Target) -> dict[str, dict[str, Any]]:
    """Label -> changes to the recipe, one thing at a time."""
    train: dict[str, tuple[Any, ...]] = {
        "weight": ("uniform", "fixed", "soft", "min-snr", "p2"),
        "target": ("hard",),
        "responsibility": (True,),
        "surgery": ("one-sided", "two-sided", "per-tensor", "orthogonal"),
        "ema": (0.0,),
        "retain_weight": (0.0, 0.1),
        "dual_rate": (0.0,),
        "rank": (1, 4, 16, 64),
    }
    found = {f"{key}={value}": {"train": {key: value}} for key, values in train.items() for value in values}
    own = "files" if target.files else target.surrogate
    for kind in ("sdedit", "nearest", "posterior", "inpaint", "latent"):
        if kind != own:
            found[f"surrogate={kind}"] = {"surrogate": {"kind": kind, "images": []}}
    return found
