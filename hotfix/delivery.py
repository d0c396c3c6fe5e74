"""Delivery: from a recipe to files. The patch, how it came to be, and its report; of one recipe, or many in turn."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotfix import ledger, pictures, processes, provenance
from hotfix.batch import Asked, Base, Job, Result
from hotfix.building import Progress, build, requires
from hotfix.denoiser import Denoiser
from hotfix.errors import HotfixError
from hotfix.manifest import now
from hotfix.page import Gallery
from hotfix.patch import Patch
from hotfix.pipeline import load_pipeline
from hotfix.recipe import Recipe
from hotfix.report import Build, Report
from hotfix.scoring import hardware, score
from hotfix.stack import Stack


@dataclass(frozen=True)
class Told:
    """Who hears what while a recipe is worked on; by default nobody hears anything."""

    bar: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(lambda step, steps, facts: None)
    say: Callable[[str], None] = lambda words: None
    wrote: Callable[[Path], None] = lambda path: None
    note: Callable[..., None] = lambda verb, patches, **facts: None


NOBODY = Told()


def make(recipe: Recipe, pipe: Any, below: Stack, out: Path, told: Told) -> tuple[Patch, Build]:
    """Build a patch and write it, and how it came to be beside it. Raises what `build` raises, and SaveError."""
    started = now()
    spent: list[Build] = []
    with told.bar() as progress:
        patch = build(recipe, pipe, stack=below, checkpoint=out, progress=progress, stage=told.say, spent=spent.append)
    told.wrote(path := patch.save(out))
    ran_on = hardware(Denoiser(pipe, recipe.base.call).device)
    made = provenance.statement(patch, path, below.patches, started=started, finished=now(), hardware=ran_on)
    told.say(f"how it came to be: {provenance.save(made, path)}")
    told.note("built", [ledger.ref(patch)])
    return patch, spent[0]


def help_along(recipe: Recipe, pipe: Any, below: Stack, asked: Asked) -> None:
    """What another process than the first does of a build: it learns and draws its share, and writes nothing."""
    patch = build(recipe, pipe, stack=below, checkpoint=asked.out)
    if asked.n:
        score(pipe, recipe, stack=Stack.of(*below.patches, patch), n=asked.n, shared=True)


def measure(
    recipe: Recipe, pipe: Any, below: Stack, patch: Patch, asked: Asked, told: Told, spent: Build | None = None
) -> Report:
    """Measure a patch and write its report, as a page too if that is asked for."""
    gallery = Gallery(asked.show_forget) if asked.html else None
    on, shared = Stack.of(*below.patches, patch), processes.several()
    report = score(pipe, recipe, stack=on, n=asked.n, gallery=gallery, stage=told.say, shared=shared)
    report = report.model_copy(update={"build": spent})
    told.wrote(report.save(_beside(patch, asked.out, "report.json")))
    told.note("scored", [ledger.ref(patch)], **ledger.evidence(report, report.text().encode()))
    if gallery:
        told.wrote(report.to_html(_beside(patch, asked.out, "report.html"), gallery))
    return report


def finished(recipe: Recipe, below: Stack, out: Path) -> Patch | None:
    """The patch of this recipe that is there already: from the same recipe and pictures, on the same patches.

    Forget pictures are compared with the commitments in the patch. It holds nothing of other pictures: one that is
    newer than the patch counts as changed.

    Raises:
        HotfixError: what is there is no patch, or a picture cannot be used.
    """
    path = out / f"{recipe.name}-{recipe.version}.safetensors"
    if not path.exists():
        return None
    patch = Patch.load(path)
    said, written = patch.manifest, path.stat().st_mtime
    if said.scope is None or said.recipe != recipe.public() or said.requires != requires(recipe, below):
        return None
    named = recipe.pictures()
    forget = pictures.load(named.pop("forget.images"), (said.scope.height, said.scope.width))
    if [pictures.commitment(picture, recipe.name, recipe.version) for picture in forget] != said.targets:
        return None
    return patch if all(file.stat().st_mtime <= written for files in named.values() for file in files) else None


def measured(patch: Patch, asked: Asked) -> Report | None:
    """The report of a patch that is there already, if it drew as many pictures as are asked for, with its page."""
    path, page = _beside(patch, asked.out, "report.json"), _beside(patch, asked.out, "report.html")
    if not asked.n or not path.exists() or (asked.html and not page.exists()):
        return None
    report = Report.load(path)
    enough = all(replay.after.n >= asked.n for replay in report.replays)
    return report if enough and patch.id in [one.id for one in report.patches] else None


class Workshop:
    """Builds what it is given, one recipe after another, with one base in memory: that of the last recipe."""

    def __init__(self, asked: Asked, told: Told = NOBODY) -> None:
        """Read the patches to build on, if there are any. Raises what `Stack.load` raises."""
        self.asked, self.told = asked, told
        self.below = Stack.load(asked.stack) if asked.stack else Stack()
        self.base: Base | None = None
        self.pipe: Any = None

    def deliver(self, job: Job) -> Result:
        """One recipe; what goes wrong with it is in the result, and does not keep the next one from being built."""
        try:
            return self._delivered(job)
        except HotfixError as error:
            return Result.failed(job.recipe, error)
        except Exception as error:
            self.base = self.pipe = None  # whatever it left behind
            words = f"{type(error).__name__}: {error}"
            hint = "this is no sentence of hotfix: build it alone, with HOTFIX_DEBUG=1, to see where"
            return Result.failed(job.recipe, HotfixError(words, hint=hint))

    def _delivered(self, job: Job) -> Result:
        started, recipe, spent = time.monotonic(), Recipe.load(job.recipe), None
        patch = finished(recipe, self.below, self.asked.out)
        if there := patch is not None:
            report = measured(patch, self.asked)
        else:
            report = None
            patch, spent = make(recipe, self._loaded(recipe, job.base), self.below, self.asked.out, self.told)
        if report is None and self.asked.n:
            pipe = self._loaded(recipe, job.base)
            report = measure(recipe, pipe, self.below, patch, self.asked, self.told, spent)
        return Result(
            str(job.recipe),
            "found" if there else "built",
            ledger.ref(patch),
            str(_beside(patch, self.asked.out, "safetensors")),
            ledger.evidence(report, report.text().encode()) if report else None,
            tuple(report.misses) if report else (),
            seconds=round(time.monotonic() - started, 1),
        )

    def _loaded(self, recipe: Recipe, base: Base) -> Any:
        if self.base != base:
            self.base = self.pipe = None  # before there are two
            self.pipe, self.base = load_pipeline(recipe, device=processes.device()), base
        return self.pipe


def _beside(patch: Patch, out: Path, ending: str) -> Path:
    return out / f"{patch.name}-{patch.version}.{ending}"
