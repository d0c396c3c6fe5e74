"""What a person sees: data on stdout, words and progress on stderr, and the one door where errors become sentences."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hotfix import cost
from hotfix.errors import HotfixError, SaveError, joined, printable

OVER_BUDGET = 3


def data(value: Any, text: str, as_json: bool) -> None:
    """Print a result: as JSON for programs, as text for people."""
    try:
        print(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
    except (OSError, UnicodeEncodeError) as error:
        _unwritable(error)


def each(
    rows: Sequence[tuple[Mapping[str, str], Callable[[], Mapping[str, str]]]], as_json: bool, empty: str = ""
) -> None:
    """Try every check, print which hold, and raise one error that names those that do not.

    Args:
        rows: facts about one thing, and its check, which adds facts or raises a HotfixError.
        as_json: for programs.
        empty: what to say where there is nothing to check.
    """
    bad: list[HotfixError] = []
    found: list[dict[str, Any]] = []
    for facts, check in rows:
        try:
            found.append({**facts, **check(), "ok": True})
        except HotfixError as error:
            bad.append(error)
            found.append({**facts, "ok": False, "error": str(error)})
    lines = [
        "  ".join(["ok " if row["ok"] else "BAD", *(printable(row[key]) for key in row if key not in ("ok", "error"))])
        for row in found
    ]
    data(found, "\n".join(lines) or empty, as_json)
    if bad:
        raise joined(bad, HotfixError)


def say(words: str) -> None:
    """A word about what is going on, for people only."""
    print(words, file=sys.stderr, flush=True)


def sentence(error: HotfixError) -> str:
    """An error for people: what is wrong, a blank line, and what to do next."""
    return f"error: {printable(str(error))}" + (f"\n\nhint: {printable(error.hint)}" if error.hint else "")


def fail(error: HotfixError) -> NoReturn:
    """Print the sentence, a blank line and the hint, and leave with exit code 1."""
    say(sentence(error))
    raise SystemExit(1)


def _unwritable(error: OSError | UnicodeEncodeError) -> NoReturn:
    """Leave with exit code 1 where stdout takes no more; without a word where who reads it has had enough."""
    if isinstance(error, UnicodeEncodeError):
        found = f"stdout is {error.encoding}, which has no {error.object[error.start]!a}"
        fail(SaveError(found, hint="PYTHONIOENCODING=utf-8"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more as it ends
    if isinstance(error, BrokenPipeError):
        raise SystemExit(1)
    fail(SaveError(f"cannot write to stdout: {error.strerror}", hint="free some space, or write it elsewhere"))


@contextmanager
def door() -> Iterator[None]:
    """Turn a HotfixError, Ctrl-C, or a stdout that takes no more into sentences. HOTFIX_DEBUG=1 shows tracebacks."""
    try:
        yield
    except HotfixError as error:
        if os.environ.get("HOTFIX_DEBUG"):
            raise
        fail(error)
    except KeyboardInterrupt:
        say("\nerror: interrupted\n\nhint: nothing was changed; the same command goes on from the last checkpoint")
        raise SystemExit(130) from None
    except (BrokenPipeError, UnicodeEncodeError) as error:
        _unwritable(error)
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            _unwritable(error)


def quiet_libraries() -> None:
    """Their notes are for developers of pipelines; ours must be readable between them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def bar() -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A progress bar with step, loss, conflict rate, time left and peak memory; a line every 50 steps without a tty."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console, started = Console(stderr=True), time.monotonic()
    columns = [TextColumn("step {task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn()]
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task("", total=None)

        def progress(step: int, steps: int, facts: Mapping[str, float]) -> None:
            losses = f"loss {facts['forget']:.4f} · retain {facts['retain']:.5f}"
            words = f"{losses} · conflicts {facts['conflicts']:.0%} · {peak()}"
            shown.update(task, completed=step, total=steps, description=words)
            if not console.is_terminal and step % 50 == 0:
                say(f"  step {step}/{steps} · {words} · {time.monotonic() - started:.0f} s")

        yield progress


def peak() -> str:
    """Peak memory of this process, and of the GPU where there is one."""
    host, gpu = cost.peaks()
    return cost.gib(host) + (f", {cost.gib(gpu)} on the GPU" if gpu is not None else "")
