"""Report: what was measured, on which patches, with which seeds and how many samples. Never part of a patch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field

from hotfix.container import write_atomically
from hotfix.errors import HotfixError
from hotfix.findings import (
    Attack,
    Diffusion,
    Likelihood,
    Membership,
    Replay,
    Retain,
    Subject,
    TimestepWindow,
    WorstNoise,
)
from hotfix.intervals import Part, Rate

if TYPE_CHECKING:
    from hotfix.page import Gallery

SCHEMA_VERSION = 1

HONEST = (
    "A patch suppresses an output; it takes nothing out of the weights, which stay as they were beneath it.",
    "Whoever can take the patch off, or train on top of it, can have the output back.",
    "What was measured holds for this base, this way of calling it, these seeds and the attacks listed as run.",
    "Other pictures of the same subject were not tested unless they are listed.",
)
# What nobody runs here, and what is not run unless asked for.
NEVER_RUN = (
    "adapters that other people have trained",
    "words found by another encoder",
)


class PatchRef(Part):
    """Which patch was on."""

    name: str
    version: str
    id: str


class Build(Part):
    """What building cost, in the run that finished it; a run that was killed before is not counted."""

    seconds: float
    steps: int
    host_bytes: int  # the most that the process ever held, the first one of several
    gpu_bytes: int | None = None  # the most that was held of a GPU
    gpu_joules: float | None = None  # of the whole GPU, where NVML says
    processes: int = 1


class Report(Part):
    """Everything that was measured in one run of `hotfix.score`."""

    schema_version: int = SCHEMA_VERSION
    recipe: str
    patches: list[PatchRef]
    pipeline: str
    seed: int
    created: str
    tool: str
    hardware: str
    seconds: float
    null: float  # 99th percentile of strangers' similarity to the target
    tau: float  # from this similarity on, a picture counts as the target
    t_lo: float  # claims hold for noise levels from here on
    replays: Annotated[list[Replay], Field(min_length=1)]
    diffusion: list[Diffusion]
    worst_noises: list[WorstNoise] = []
    retain: Retain
    membership: list[Membership] = []
    likelihood: Likelihood | None = None  # of small models
    subject: Subject | None = None  # where the recipe holds pictures out
    windows: list[TimestepWindow] = []
    build: Build | None = None  # where one run built the patch and measured it
    scope: str = "any"  # "caption": only the return rate under its own captions is judged
    budget_return_rate: float
    budget_drift: float
    attacks: list[Attack] = []
    attacks_run: list[str]
    attacks_not_run: list[str]
    words: list[str] = list(HONEST)

    @property
    def headline(self) -> str:
        """One sentence that the page, the card and `hotfix show` begin with."""
        first = self.replays[0]
        under = "its own captions" if first.caption == "own" else f"the {first.caption} caption"
        bare = f"Under {under}, the target came out in {first.before.k} of {first.before.n} pictures"
        if not self.patches:
            return f"{bare}."
        return (
            f"{bare} before the patch, and in {first.after.k} of {first.after.n} with it: "
            f"at most {first.after.upper:.2%}, with 95% confidence."
        )

    @property
    def misses(self) -> list[str]:
        """Where the budget was missed, in words; empty when it was kept."""
        found = [
            f"return rate, {r.caption} caption: at most {r.after.upper:.2%} (95%), budget {self.budget_return_rate:.2%}"
            + ("" if r.after.k else f"; 0 of {r.after.n} is too few to tell: -n {Rate.needed(self.budget_return_rate)}")
            for r in self.replays
            if (self.scope == "any" or r.caption == "own") and not r.after.upper <= self.budget_return_rate
        ]
        base = [*(r.before for r in self.replays), *(d.before_rate for d in self.diffusion if d.t >= self.t_lo)]
        if self.patches and not any(rate.k for rate in base):
            found.append("there was nothing to suppress: the base drew no target; see forget.captions and base.call")
        found += [
            f"quality, {r.caption} caption: {r.sound} drawings are sound, {r.sound_before} before"
            for r in self.replays
            if r.sound and r.sound_before and r.sound.high < r.sound_before.low
        ]
        if not self.retain.drift_rmse <= self.budget_drift:  # also where it is no number
            found.append(f"drift {self.retain.drift_rmse:.4f}, budget {self.budget_drift:.4f}")
        return found

    def save(self, path: str | Path) -> Path:
        """Write report.json. It holds numbers only, no picture."""
        path = Path(path)
        write_atomically(path, self.text().encode())
        return path

    def text(self) -> str:
        """The report as it is saved: JSON of the fields above, none of which holds a picture."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def to_html(self, path: str | Path, gallery: "Gallery | None" = None) -> Path:
        """Write the report as one page for people.

        Args:
            path: an .html file.
            gallery: before/after pictures, only if you ask; `Gallery(show_forget=True)` shows targets as they are.
        """
        from hotfix import page  # numbers alone need no torch

        return page.write(self, Path(path), gallery)

    @classmethod
    def beside(cls, patch: Path, id: str) -> Self | None:
        """The report that lies beside a patch and is of that very one, if there is one that can be read."""
        for name in (f"{patch.name.removesuffix('.safetensors')}.report.json", "report.json"):
            if (file := patch.with_name(name)).exists():
                try:
                    found = cls.load(file)
                except HotfixError:
                    continue
                if [one.id for one in found.patches][-1:] == [id]:  # a build puts its own last
                    return found
        return None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a report. Raises HotfixError when it is not one, or one of another schema."""
        try:
            found = json.loads(Path(path).read_bytes())
            if isinstance(found, dict) and found.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
                raise HotfixError(
                    f"{path} is a report of schema {found['schema_version']}",
                    wanted=f"schema {SCHEMA_VERSION}",
                    hint="install the hotfix that wrote it: its key `tool` says which",
                )
            return cls.model_validate(found)
        except (OSError, ValueError, RecursionError) as error:
            raise HotfixError(f"{path} is not a hotfix report", hint="`hotfix score` writes one") from error
