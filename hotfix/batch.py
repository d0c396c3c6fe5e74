"""Batch: many recipes in one go. Which may be built together, in which order, and what became of each. No torch."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hotfix import ledger
from hotfix.chain import Ref
from hotfix.errors import HotfixError, RecipeError, SaveError, joined
from hotfix.pipeline import locate
from hotfix.recipe import Recipe

Base = tuple[Any, ...]  # where it is, its commit, and how it is loaded
LOCK = ".batch"  # the file of a folder that whoever builds into it holds


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, of every recipe alike."""

    out: Path = Path("dist")
    stack: Path | None = None  # a lock
    n: int = 300
    html: bool = False
    show_forget: bool = False


@dataclass(frozen=True)
class Job:
    """One recipe that can be read, whose pictures and base are there."""

    recipe: Path
    base: Base


@dataclass(frozen=True)
class Result:
    """What became of one recipe."""

    recipe: str  # its file
    state: Literal["built", "found", "failed"]  # found: it had been built before
    patch: Ref | None = None
    file: str = ""
    evidence: dict[str, Any] | None = None  # of its report, as a ledger keeps it
    misses: tuple[str, ...] = ()  # of its budget
    error: str = ""
    hint: str = ""
    seconds: float = 0.0

    @classmethod
    def failed(cls, recipe: Path, error: HotfixError) -> "Result":
        """One that could not be built, and why."""
        return cls(str(recipe), "failed", error=str(error), hint=error.hint)

    def facts(self) -> dict[str, Any]:
        """For programs."""
        row: dict[str, Any] = {"recipe": self.recipe, "state": self.state}
        if self.patch is None:
            return row | {"error": self.error, "hint": self.hint}
        row |= {"name": self.patch.name, "version": self.patch.version, "id": self.patch.id, "file": self.file}
        within = self.evidence["within_budget"] if self.evidence else None
        return row | {"within_budget": within, "misses": list(self.misses), "seconds": self.seconds}

    def __str__(self) -> str:
        if self.patch is None:
            return f"failed  {self.recipe}: {self.error} (hint: {self.hint})"
        over = f", over budget: {'; '.join(self.misses)}" if self.misses else ""
        return f"{self.state:<6}  {self.file}{over}"


def plan(recipes: Sequence[Path]) -> tuple[list[Job], list[Result]]:
    """What can be built, and what cannot.

    Raises:
        RecipeError: several recipes would write the same file; all of them are named.
    """
    jobs, bad, files = [], [], dict[str, list[str]]()
    for path in recipes:
        try:
            recipe = Recipe.load(path)
            files.setdefault(f"{recipe.name} {recipe.version}", []).append(str(path))
            recipe.pictures()
            locate(recipe.base.pipeline, recipe.base.revision)
            jobs.append(Job(path, tuple(recipe.base.model_dump(exclude={"call"}).values())))
        except HotfixError as error:
            bad.append(Result.failed(path, error))
    hint = "give each a name or a version of its own, and name each once"
    clashes = [
        RecipeError(f"{' and '.join(paths)} build the same patch, {patch}", hint=hint)
        for patch, paths in files.items()
        if len(paths) > 1
    ]
    if clashes:
        raise joined(clashes, RecipeError)
    return jobs, bad


def take(waiting: list[Job], loaded: Base | None) -> Job:
    """The next one for a worker, out of the list: of the base that it has loaded, else of that with most to build."""
    counts = Counter(job.base for job in waiting)
    base = loaded if loaded and counts[loaded] else max(counts, key=lambda base: counts[base])
    return waiting.pop(next(i for i, job in enumerate(waiting) if job.base == base))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a second batch out of a folder, which would build what this one is building. On Windows it is let in.

    Raises:
        HotfixError: another one is at it.
        SaveError: nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("a")
    except OSError as error:
        raise SaveError(f"cannot write to {out}: {error.strerror}", hint="choose -o elsewhere") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            hint = "wait for it, or choose -o elsewhere"
            raise HotfixError(f"another build of several recipes is writing to {out}", hint=hint) from error
        yield


def recorder(lock: Path) -> Callable[[Result], None]:
    """Writes each build, and what was measured of it, into the ledger of a lock: once, however often it is found.

    A run that is killed between a patch and its line leaves the line to the next one, which says that it found it.

    Raises:
        HotfixError: the ledger cannot be written or, where there is one, is not as it was written.
    """
    note = ledger.notes(lock, begin=True)
    there = ledger.read(lock)[0] if ledger.beside(lock).exists() else []
    seen = {(entry.verb, ref.id, entry.facts.get("report")) for entry in there for ref in entry.patches}

    def record(result: Result) -> None:
        if result.patch is None:
            return
        lines = {"built": {"found": True} if result.state == "found" else {}}
        lines |= {"scored": result.evidence} if result.evidence else {}
        for verb, facts in lines.items():
            if result.state == "built" or (verb, result.patch.id, facts.get("report")) not in seen:
                note(verb, [result.patch], **facts)

    return record
