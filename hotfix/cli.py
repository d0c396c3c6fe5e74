"""The verbs. Each opens a noun, calls the library function of the same name, and prints what came back."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App

from hotfix import (
    cli_build,
    cli_compare,
    cli_exchange,
    cli_hub,
    cli_log,
    cli_sign,
    cli_stack,
    cli_sync,
    console,
    hub,
    ledger,
    lock,
)
from hotfix.errors import HotfixError, StackError
from hotfix.options import Json, Out, Parameter, ShowForget, pictures_for, pipeline_of

app = App(
    name="hotfix",
    help="Suppress one output of a diffusion model with a small patch that comes off without a trace.",
    suppress_keyboard_interrupt=False,  # console.door says what to do next
)

STACKS = (cli_stack.add, cli_stack.rm, cli_stack.merge, cli_stack.status, cli_sync.sync, cli_compare.compare)
TRUST = (cli_sign.sign, cli_sign.verify, cli_sign.trust, cli_sign.distrust, cli_sign.sbom)
RECORD = (cli_log.log, cli_log.approve)
PLACES = (cli_hub.push, cli_hub.pull, cli_hub.outdated, cli_exchange.export)
for _verb in STACKS + TRUST + RECORD + PLACES:
    app.command(_verb)
app.command(cli_build.build)
app.command(cli_hub.list_lines, name="list")
app.command(cli_exchange.import_, name="import")


@app.command
def new(name: str) -> None:
    """Write patches/NAME/recipe.toml, with every key explained.

    Args:
        name: of the patch line, such as mauritania-2017.
    """
    from hotfix.starter import start

    print(start(name))


@app.command
def show(patch: str, *, json: Json = False) -> None:
    """What a patch says about itself. Reads no tensors into torch, and of one on the Hub none at all.

    Args:
        patch: a .safetensors file, or hf://ORG/NAME[@VERSION or @COMMIT].
    """
    from hotfix.describe import describe, facts
    from hotfix.patch import Patch

    opened = hub.look(patch) if patch.startswith(hub.SCHEME) else Patch.load(patch)
    console.data(facts(opened), describe(opened), json)


@app.command
def score(
    pipeline: str,
    recipes: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    stack: Annotated[Path | None, Parameter(help="A lock; without one the bare pipeline is measured.")] = None,
    seed: int = 0,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="Pictures to draw for every rate.")] = 300,
    bound: Annotated[
        float | None, Parameter(help="Instead of -n: draw as many as no return among them bounds so.")
    ] = None,
    quick: Annotated[bool, Parameter(negative=(), help="The same as --bound 0.05.")] = False,
    attacks: Annotated[str, Parameter(help="Also try to get the target back: all, or names with commas.")] = "",
    json: Json = False,
    html: Annotated[Path | None, Parameter(help="Write a page here, with pictures.")] = None,
    show_forget: ShowForget = False,
) -> None:
    """Measure return rates and drift, before and after. Exits with 3 over budget.

    With several recipes: whether each of their patches in the stack holds with the others on, which one weakens it if
    not, and the drift of the stack against the sum of its parts. Exits with 3 where one is weakened.

    Args:
        pipeline: hotfix:NAME, a folder, or a Hub id as ID@COMMIT.
        recipes: what was to be forgotten.
        seed: same seed, same numbers.
    """
    from hotfix.recipe import Recipe
    from hotfix.stack import Stack

    if quick or bound is not None:
        n = pictures_for(0.05 if bound is None else bound)
    wanted = [Recipe.load(recipe) for recipe in recipes]
    for one in wanted:
        one.pictures()
    if (html or attacks) and len(wanted) > 1:
        raise HotfixError("a page and attacks are about one recipe", hint="leave them out, or give one recipe")
    patches = Stack.load(stack) if stack else Stack()
    note, on = ledger.notes(stack or Path(lock.LOCK)), [ledger.ref(patch) for patch in patches.patches]
    pipe = pipeline_of(pipeline, draws=True)
    from hotfix.describe import summary, together

    if len(wanted) > 1:
        from hotfix.interfering import interference

        found = interference(pipe, wanted, stack=patches, seed=seed, n=n, stage=console.say)
        console.data(found.model_dump(mode="json"), together(found), json)
        note("scored", on, weakened=[one.patch.name for one in found.patches if one.weakened])
        if found.conflicts:
            raise SystemExit(console.OVER_BUDGET)
    else:
        from hotfix.page import Gallery
        from hotfix.scoring import score as measure

        gallery = Gallery(show_forget) if html else None
        ways = [name for name in attacks.split(",") if name]
        report = measure(
            pipe, wanted[0], stack=patches, seed=seed, n=n, attacks=ways, gallery=gallery, stage=console.say
        )
        console.data(report.model_dump(mode="json"), summary(report), json)
        note("scored", on, **ledger.evidence(report, report.text().encode()))
        if html:
            console.say(str(report.to_html(html, gallery)))
        if report.misses:
            console.say(f"over budget: {'; '.join(report.misses)}")
            raise SystemExit(console.OVER_BUDGET)


@app.command
def apply(
    pipeline: str,
    *,
    out: Out,
    stack: Annotated[Path, Parameter(help="The lock to apply.")] = Path(lock.LOCK),
    dtype: Annotated[str, Parameter(help="float32, float16 or bfloat16.")] = "float32",
    allow_related_base: Annotated[bool, Parameter(negative=(), help="Also onto weights made from the base.")] = False,
) -> None:
    """Write a patched copy of a saved pipeline: the change is folded into the weights, the original is untouched.

    Args:
        pipeline: hotfix:NAME, a folder, or a Hub id as ID@COMMIT.
    """
    from hotfix.recipe import without_path
    from hotfix.stack import Stack

    if out.exists() and any(out.iterdir()):
        raise StackError(f"{out} is not empty", hint="name a new folder: a patched copy never overwrites a pipeline")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise HotfixError(f"--dtype is {dtype}", wanted="float32, float16 or bfloat16", hint="float32 loses nothing")
    patches = Stack.load(stack)
    book, on = ledger.beside(stack), [ledger.ref(patch) for patch in patches.patches]
    copy = {"pipeline": without_path(pipeline), "copy": out.absolute().name, "dtype": dtype}
    ready = partial(ledger.append, book, "applied", on, **copy) if ledger.kept(book) else lambda: None
    pipe = pipeline_of(pipeline)
    from hotfix.patched_copy import save_folded

    print(save_folded(patches, pipe, out, dtype, allow_related_base=allow_related_base, ready=ready))


@app.command
def demo(*, out: Out = Path("demo")) -> None:
    """The whole story on the bundled flags: build, measure, put on, take off, and a report to look at."""
    console.quiet_libraries()
    from hotfix.demo import run

    run(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    with console.door():
        try:
            app(list(arguments) if arguments is not None else sys.argv[1:], exit_on_error=False, print_error=True)
        except HotfixError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("cyclopts"):
                raise SystemExit(2) from None
            raise
