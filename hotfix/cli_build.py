"""The verb that makes patches: of one recipe, or of many."""

from collections.abc import Generator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Annotated

from hotfix import batch, console, fleet, ledger, lock
from hotfix.batch import Asked, Job, Result
from hotfix.errors import HotfixError
from hotfix.options import Out, Parameter, ShowForget


def build(
    recipes: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    out: Out = Path("dist"),
    stack: Annotated[Path | None, Parameter(help="A lock: build on top of these patches, and require them.")] = None,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="Pictures to draw for every rate; 0 measures nothing.")] = 300,
    html: Annotated[bool, Parameter(negative=(), help="Also write report.html, with pictures.")] = False,
    show_forget: ShowForget = False,
    plan: Annotated[bool, Parameter(negative=(), help="Only say what it will take in memory and time.")] = False,
    ray: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            consume_multiple=(0, 1),
            allow_repeating=False,
            metavar="[ADDRESS]",
            help="On a Ray cluster: at this address, or the one that Ray finds, or one on this machine.",
        ),
    ] = None,
    workers: Annotated[int | None, Parameter(help="With --ray: how many; otherwise one for each GPU or core.")] = None,
    json: Annotated[
        bool, Parameter(name="--json", negative=(), help="A plan, or what became of each, as JSON.")
    ] = False,
) -> None:
    """Train a patch, measure it, and write NAME-VERSION.safetensors and report.json. Resumes after a kill.

    Exits with 3 when the patch was built but misses its budget. With --plan nothing is trained to the end, and nothing
    is written. Several recipes are built one after another, or at once with --ray; what is there already is not built
    again, and one that fails keeps no other from being built.

    Args:
        recipes: each a recipe.toml.
    """
    if n < 0:
        raise HotfixError(f"-n {n}", wanted="0 or more", hint="-n 0 measures nothing, -n 299 bounds a rate by 1%")
    if out.exists() and not out.is_dir():
        raise HotfixError(f"-o {out} is a file", wanted="a folder", hint="name another one")
    asked = Asked(out, stack, n, html, show_forget)
    if ray is None and workers is not None:
        raise HotfixError("--workers is about a cluster", hint="hotfix build RECIPES --ray --workers 4")
    if ray is None and len(recipes) == 1:
        _one(recipes[0], asked, plan, json)
    elif plan:
        raise HotfixError("--plan is about one recipe on this machine", hint="hotfix build RECIPE --plan")
    else:
        _many(recipes, asked, ray, workers, json)


def _one(recipe: Path, asked: Asked, plan: bool, json: bool) -> None:
    from hotfix.pipeline import load_pipeline, locate
    from hotfix.recipe import Recipe

    if json and not plan:
        raise HotfixError("--json says how a plan is printed", hint="hotfix build RECIPE --plan --json")
    wanted = Recipe.load(recipe)
    wanted.pictures()  # what can be refused is refused before torch and diffusers are imported
    locate(wanted.base.pipeline, wanted.base.revision)
    note = ledger.notes(asked.stack or Path(lock.LOCK), begin=True)
    console.quiet_libraries()
    from hotfix import processes
    from hotfix.delivery import Told, help_along, make, measure
    from hotfix.stack import Stack

    below = Stack.load(asked.stack) if asked.stack else Stack()
    pipe = load_pipeline(wanted, device=processes.device(), split=processes.split())
    if plan:
        from hotfix.planning import FEWER
        from hotfix.planning import plan as probe

        found = probe(wanted, pipe, stack=below)
        if processes.first():
            console.data(found.facts(), str(found), json)
        found.need.check(hint=FEWER)
        return
    if not processes.first():
        help_along(wanted, pipe, below, asked)
        return
    told = Told(console.bar, console.say, print, note)
    patch, spent = make(wanted, pipe, below, asked.out, told)
    if not asked.n:
        return
    report = measure(wanted, pipe, below, patch, asked, told, spent)
    if report.misses:
        console.say(f"over budget: {'; '.join(report.misses)}")
        raise SystemExit(console.OVER_BUDGET)


def _many(recipes: list[Path], asked: Asked, ray: list[str] | None, workers: int | None, json: bool) -> None:
    address = "".join(ray or [])
    if address.endswith(".toml"):
        raise HotfixError(f"--ray {address} is no address", hint="name the recipes before --ray")
    if workers is not None and workers < 1:
        raise HotfixError(f"--workers {workers}", wanted="at least 1", hint="leave it out")
    jobs, failed = batch.plan(recipes)
    if asked.stack:
        lock.load(asked.stack)
    if ray is None:
        _on_one_process()
    with batch.alone(asked.out):
        record = batch.recorder(asked.stack or Path(lock.LOCK))
        results: dict[str, Result] = {}
        building = _here(jobs, asked) if ray is None else fleet.build(jobs, asked, address, workers)
        with closing(building):
            for result in chain(failed, building):
                record(result)
                results[result.recipe] = result
                console.say(f"{len(results)} of {len(recipes)}: {result}")
    rows = [results[str(path)] for path in recipes]
    console.data([row.facts() for row in rows], "\n".join(map(str, rows)), json)
    if bad := sum(row.patch is None for row in rows):
        hint = "the same command again builds only what is not there"
        raise HotfixError(f"{bad} of {len(rows)} recipes could not be built", hint=hint)
    if over := sum(bool(row.misses) for row in rows):
        console.say(f"over budget: {over} of {len(rows)}")
        raise SystemExit(console.OVER_BUDGET)


def _on_one_process() -> None:
    console.quiet_libraries()
    from hotfix import processes

    if processes.several():
        raise HotfixError("several recipes on several processes", hint="launch one at a time, or use --ray")


def _here(jobs: list[Job], asked: Asked) -> Generator[Result, None, None]:
    """One after another."""
    from hotfix.delivery import Told, Workshop

    shop, waiting = Workshop(asked, Told(console.bar, console.say)), list(jobs)
    while waiting:
        job = batch.take(waiting, shop.base)
        console.say(str(job.recipe))
        yield shop.deliver(job)
