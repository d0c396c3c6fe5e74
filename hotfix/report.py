"""Report: what was measured, on which patches, with which seeds and how many samples. Never part of a patch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from hotfix.container import write_atomically
from hotfix.errors import HotfixError
from hotfix.intervals import Mean, Part, Rate

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
NEVER_RUN = ("other people's adapters", "other resolutions", "prompts searched against another encoder (Ring-A-Bell)")


class Worst(Part):
    """Of many drawings the one that came nearest to counting as the target."""

    seed: int
    similarity: float
    tau: float  # from which it would count


class Replay(Part):
    """Pictures drawn from pure noise under one kind of caption, the same seeds before and after."""

    caption: str
    before: Rate
    after: Rate
    # Drawings that are a surrogate. Where no caption of the target asks for it, a rise says that it was memorised.
    surrogate_before: Rate | None = None
    surrogate: Rate | None = None  # after
    # Drawings that the base might have drawn, by its own denoising error: garbage is no success.
    sound_before: Rate | None = None
    sound: Rate | None = None  # after
    # Drawings in which the network of [similarity] found nothing to compare: an undetected face is no suppressed one.
    undetected_before: Rate | None = None
    undetected: Rate | None = None  # after
    worst_before: Worst | None = None
    worst: Worst | None = None  # after


class Diffusion(Part):
    """Partial diffusion: the target noised to level t and denoised again, under one kind of caption."""

    caption: str
    t: float
    before_rate: Rate
    after_rate: Rate
    before_mean: float
    after_mean: float
    after_q95: float
    after_max: float | None = None  # the worst noise
    stranger_mean: float  # a picture the model never saw, brought back by the unpatched base


class WorstNoise(Part):
    """Of the noises that a target was brought back from, the one that did so at most levels from t_lo on."""

    caption: str
    seed: int  # the number of the noise
    levels: int  # from t_lo on
    before: int  # of them, by the worst noise before
    after: int  # by the worst one after: another noise, perhaps


class HeldOut(Part):
    """Partial diffusion from a picture of the subject that was never trained on, judged by a threshold of its own."""

    picture: int  # from 1, in the order of the recipe's files; never a name
    tau: float  # from this similarity on, a picture counts as this one
    caption: str
    t: float  # from the picture's own t_lo on
    before: Rate
    after: Rate


class Subject(Part):
    """The subject in pictures that were held out. No budget judges it: instance is not identity."""

    pictures: int
    replays: list[Replay]  # drawings that count as any of them
    diffusion: list[HeldOut]

    def returns(self, caption: str, picture: int | None = None) -> tuple[Rate, Rate]:
        """How often they came back, or one of them did, over all levels, before and after."""
        rows = [row for row in self.diffusion if row.caption == caption and picture in (None, row.picture)]
        n = sum(row.before.n for row in rows)
        return Rate.of(sum(row.before.k for row in rows), n), Rate.of(sum(row.after.k for row in rows), n)

    @property
    def captions(self) -> list[str]:
        """The kinds of caption they were denoised under."""
        return list(dict.fromkeys(row.caption for row in self.diffusion))


class Attack(Part):
    """One way to get a target back (hotfix/attacks.py): drawings that are the target."""

    name: str
    budget: str
    source: str
    before: Rate  # on the unpatched base: an attack that does not win there proves nothing
    after: Rate
    stranger: Rate  # on the base, for a picture that it never saw: what wins there draws anything it is asked for


class Neighbours(Part):
    """The pictures that must stay and are most like a target: what a patch harms first."""

    n: int
    drift: Mean  # RMSE in [0, 1]
    before: Rate | None = None  # drawn right
    after: Rate | None = None


class Retain(Part):
    """Same-seed pictures for other captions, before and after. Drift in pixel units of [0, 1]."""

    n: int
    drift_rmse: float
    drift_ssim: float  # 1 - structural similarity: the perceptual distance
    rmse_interval: tuple[float, float] | None = None  # of the mean over pictures, 95%
    ssim_interval: tuple[float, float] | None = None
    before: Rate | None = None  # the picture nearest to the base's own for that caption
    after: Rate | None = None
    lost: list[str] = []  # captions drawn right before and not after: accuracy class by class, one seed each
    psnr: float | None = None  # of all pictures together, in dB; None where nothing moved
    psnr_interval: tuple[float, float] | None = None
    neighbours: Neighbours | None = None
    # By networks on the machine that measured, where they were given (hotfix/networks.py)
    networks: dict[str, str] = {}  # which: the file's name and the beginning of its sha256
    feature_drift: Mean | None = None  # 1 - cosine of the features of same-seed pictures
    kid: Mean | None = None  # of the patched model's pictures to the base's at other seeds
    kid_base: Mean | None = None  # of the base's own to those: what no change at all comes to
    lpips: Mean | None = None  # of same-seed pictures
    alignment_before: Mean | None = None  # cosine of picture and caption in CLIP's eyes
    alignment: Mean | None = None  # after
    alignment_change: Mean | None = None  # picture by picture


class Membership(Part):
    """The targets' denoising loss over that of what must stay, at one noise level, without a caption.

    A picture that was trained on is denoised better than others. A patch leads it elsewhere, and its loss rises: far
    above a stranger's, that gives it away no less.
    """

    t: float
    before: Mean
    after: Mean
    stranger: Mean  # of a picture that the base never saw, before


class Likelihood(Part):
    """-log2 p in bits per number of the latent, by the probability-flow ODE, without a caption. Lower is likelier."""

    steps: int
    target_before: Mean  # over the probes of the trace
    target: Mean  # after
    retain_before: Mean  # over pictures that must stay
    retain: Mean
    stranger_before: Mean  # a picture that the base never saw
    stranger: Mean


class TimestepWindow(Part):
    """How often one target is trained on at each noise level, under one kind of caption: numbers in [0, 1] alone."""

    target: int  # in the order of the recipe's pictures, from 1
    caption: str
    weight: str  # "calibrated": measured on the unpatched base; else the curve that the recipe names
    t_lo: float  # below it m is 0
    t: list[float]
    m: list[float]


class PatchRef(Part):
    """Which patch was on."""

    name: str
    version: str
    id: str


class Build(Part):
    """What building cost, in the run that finished it; a run that was killed before is not counted."""

    seconds: float
    steps: int
    host_bytes: int  # the most that the process ever held
    gpu_bytes: int | None = None  # the most that was held of a GPU
    gpu_joules: float | None = None  # of the whole GPU, where NVML says


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
    replays: list[Replay]
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
            for r in self.replays
            if (self.scope == "any" or r.caption == "own") and r.after.upper > self.budget_return_rate
        ]
        found += [
            f"quality, {r.caption} caption: {r.sound} drawings are sound, {r.sound_before} before"
            for r in self.replays
            if r.sound and r.sound_before and r.sound.high < r.sound_before.low
        ]
        if self.retain.drift_rmse > self.budget_drift:
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
    def load(cls, path: str | Path) -> Self:
        """Read a report. Raises HotfixError when it is not one."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            raise HotfixError(f"{path} is not a hotfix report", hint="`hotfix score` writes one") from error
