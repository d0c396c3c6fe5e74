"""States: what is listed against what is on, read from the pipeline itself."""

from dataclasses import dataclass
from typing import Any, Literal

from hotfix import reach
from hotfix.sketch import SAME
from hotfix.stack import Applied, Stack, apart_from_base, applied

State = Literal["on", "off", "shadowed", "drifted", "foreign"]


@dataclass(frozen=True)
class Status:
    """One patch.

    on        listed, and every layer of it acts
    off       listed, and not on the pipeline
    shadowed  on, but the host has put some of its layers out of use
    drifted   on, but the weights are no longer those that it went onto
    foreign   on the pipeline, and not listed
    """

    name: str
    version: str
    id: str
    state: State
    folded: bool = False
    related: bool = False  # on weights that are only like those it was made for, and allowed to be
    originals: int = 0  # bytes of weights that are kept to take it off: of the layers that it is folded into


def status(pipe: Any, stack: Stack) -> tuple[Status, ...]:
    """Every patch that is listed in a stack or on a pipeline, in order: first the stack's.

    Args:
        pipe: a diffusers pipeline.
        stack: what should be on, such as `Stack.load("hotfix.lock")`.
    """
    on = {entry.id: entry for entry in applied(pipe)}
    networks = reach.models(pipe)
    rows = []
    for patch in stack.patches:
        entry = on.pop(patch.id, None)
        if entry is None:
            rows.append(Status(patch.name, patch.version, patch.id, "off"))
            continue
        network, state = networks[patch.manifest.base.component], entry.state
        if state == "on" and not entry.related and apart_from_base(patch, network) > SAME:
            state = "drifted"
        rows.append(_row(entry, state))
    return (*rows, *(_row(entry, "foreign") for entry in on.values()))


def _row(entry: Applied, state: State) -> Status:
    return Status(entry.name, entry.version, entry.id, state, entry.folded, entry.related, entry.originals)
