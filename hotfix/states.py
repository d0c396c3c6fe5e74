"""States: what is listed against what is on, read from the pipeline itself."""

from dataclasses import dataclass
from typing import Any, Literal

from hotfix import reach
from hotfix.sketch import SAME
from hotfix.stack import Stack, apart_from_base, applied

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
        rows.append(Status(patch.name, patch.version, patch.id, state, entry.folded, entry.related))
    rows += [Status(one.name, one.version, one.id, "foreign", one.folded, one.related) for one in on.values()]
    return tuple(rows)


def originals(pipe: Any) -> int:
    """Bytes of weights that are kept to go back to: of folded stacks, and only what they touch."""
    boards = [reach.board(network) for network in reach.models(pipe).values()]
    return sum(found.kept.bytes for found in boards if found is not None and found.kept is not None)
