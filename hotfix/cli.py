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
    cli_score,
    cli_sign,
    cli_stack,
    cli_sync,
    console,
    hub,
    ledger,
    lock,
)
from hotfix.errors import HotfixError, StackError
from hotfix.options import Json, Out, Parameter, pipeline_of

app = App(
    name="hotfix",
    help="Suppress one output of a diffusion model with a small patch that comes off without a trace.",
    suppress_keyboard_interrupt=False,  # console.door says what to do next
)

STACKS = (cli_stack.add, cli_stack.rm, cli_stack.merge, cli_stack.status, cli_sync.sync, cli_compare.compare)
TRUST = (cli_sign.sign, cli_sign.verify, cli_sign.trust, cli_sign.distrust, cli_sign.sbom)
RECORD = (cli_score.score, cli_log.log, cli_log.approve)
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

    Of a file it also says what the report beside it found, if NAME-VERSION.report.json is of this very patch.

    Args:
        patch: a .safetensors file, or hf://ORG/NAME[@VERSION or @COMMIT].
    """
    from hotfix.describe import describe, facts
    from hotfix.patch import Patch
    from hotfix.report import Report

    on_hub = patch.startswith(hub.SCHEME)
    opened = hub.look(patch) if on_hub else Patch.load(patch)
    found = None if on_hub else Report.beside(Path(patch), opened.id)
    measured = found.headline if found else ""
    console.data(facts(opened) | {"measured": measured}, describe(opened, measured), json)


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

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StackError(
            f"{out} is not an empty folder", hint="name a new folder: a patched copy never overwrites a pipeline"
        )
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
