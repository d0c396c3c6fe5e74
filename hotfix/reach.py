"""Reach: is every patched layer of a model where it was, and asked when the model runs?"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hotfix import offload
from hotfix.beside import Beside, hooks, innermost
from hotfix.board import CHANGING, Board, Links
from hotfix.errors import BaseMismatch, HostError
from hotfix.fold import GIVE_UP, Kept
from hotfix.snapshot import Snapshot

BOARD = "_hotfix_board"
CARRY = "_hotfix_carry"  # on a pipeline: its models that something is on, by component
FUSED = "fused_projections"  # of queries, keys and values, in diffusers: no single one of them is asked any more


def board(model: nn.Module) -> Board | None:
    """The board of a model that something is on, or has been until the last generation ends."""
    return model.__dict__.get(BOARD)


def known(model: nn.Module) -> Board:
    """The board of a model that has one."""
    found = board(model)
    assert found is not None
    return found


def current(model: nn.Module) -> Snapshot | None:
    """What is on now, whoever asks; None where nothing is."""
    return found.current if (found := board(model)) is not None else None


def models(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by component, each inside whatever compilers have put around it."""
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, Mapping):
        return {}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if isinstance(part, nn.Module)}


def _order(model: nn.Module | None) -> tuple[str, ...]:
    return found.order if model is not None and (found := current(model)) is not None else ()


def lost(pipe: Any) -> dict[str, nn.Module]:
    """Models that carry patches and are no longer the pipeline's; not where what is there now carries the same."""
    found, now = {}, models(pipe)
    for name, model in getattr(pipe, CARRY, {}).items():
        on, there = (_order(one) for one in (model, now.get(name)))
        if now.get(name) is not model and not set(on) <= set(there):
            found[name] = model
    return found


def refuse_lost(pipe: Any) -> None:
    """Raise HostError where a component that carries patches was replaced, or wrapped into something."""
    for name, model in lost(pipe).items():
        raise HostError(
            f"the {name} that {known(model).current.names} is on is no longer the pipeline's",
            hint="put it back; or apply the stack again, to what is there now",
        )


def carry(pipe: Any) -> bool:
    """Note which models of a pipeline something is on, and say whether there are any. What was lost is among them."""
    found = {name: model for name, model in models(pipe).items() if board(model) is not None} | lost(pipe)
    if found:
        setattr(pipe, CARRY, found)
    elif hasattr(pipe, CARRY):
        delattr(pipe, CARRY)
    return bool(found)


def reached(model: nn.Module) -> set[nn.Module]:
    """Layers that carry a patch and are asked when the model runs, read from the model as it is now."""
    here = known(model)
    if here.kept is None:
        carriers = {layer for layer, _, hook in hooks(model) if hook.board is here}
    else:
        carriers = set(here.kept.originals).difference(here.kept.foreign())
    found = set()
    for layer in carriers:
        name = here.names[layer]
        try:
            there = innermost(model, name) is layer
        except BaseMismatch:
            continue
        if there and not getattr(model.get_submodule(name.rpartition(".")[0]), FUSED, False):
            found.add(layer)
    return found


def check(model: nn.Module, *, step: bool = False) -> None:
    """Compare that every patched layer is reached. Costs some tens of microseconds where nothing has changed.

    Args:
        model: may have something on.
        step: one of many in a generation, which is checked in full at its beginning and its end: half of the layers
            now, the other half at the next step. Of folded weights it sees that somebody wrote to them, but not through
            `.data`, which leaves no mark: the numbers themselves are compared in full only.

    Raises:
        HostError: one is not, and the patches that it carries would be lost.
    """
    found = board(model)
    if found is None:
        return
    if (links := found.links) is not None:
        found.turn = 1 - found.turn
        if all(map(_hold, links[found.turn : found.turn + 1] if step else links)) and _marked(model, found, step):
            return
    with CHANGING:  # another thread may be at it
        if board(model) is found:
            _look(model, found)


def _look(model: nn.Module, found: Board) -> None:
    """Ask the model itself, and keep how every layer is reached for the next comparison."""
    there = reached(model)
    lost = [factors for factors, layers in found.current.carried().values() if not there.issuperset(layers)]
    if lost:
        names = ", ".join(f"{factors.name} {factors.version}" for factors in lost)
        if found.kept is not None and found.kept.foreign():
            raise HostError(f"somebody else wrote to weights that {names} is folded into", hint=GIVE_UP)
        raise HostError(
            f"the {type(model).__name__} no longer asks every layer that {names} acts on",
            hint="something replaced or fused its layers; undo that, or take the patch off and on again",
        )
    found.links = _links(model, [found.names[layer] for layer in there])
    found.marks = found.kept.marks() if found.kept is not None else []


def _same(model: nn.Module, kept: Kept) -> bool:
    with CHANGING:  # not while another thread writes them
        return not kept.foreign() or offload.on_disk(model)  # from where the folded weights come back


def _marked(model: nn.Module, found: Board, step: bool) -> bool:
    return found.kept is None or (found.kept.marks() == found.marks and (step or _same(model, found.kept)))


def _links(model: nn.Module, names: Sequence[str]) -> list[Links]:
    """How every patched layer is reached, in two halves; and that the dictionaries are still where they were."""
    seen: dict[tuple[int, Any], tuple[dict, Any]] = {}
    places: dict[tuple[int, Any], tuple[dict, Any]] = {}
    for name in names:
        at, words = model, name.split(".")
        while words or "base_layer" in at._modules:
            word = words.pop(0) if words else "base_layer"
            seen[id(at._modules), word] = (at._modules, word)
            places[id(at), "_modules"] = (at.__dict__, "_modules")
            if FUSED in at.__dict__:
                seen[id(at.__dict__), FUSED] = (at.__dict__, FUSED)
            at = at._modules[word]  # type: ignore[assignment]
        places[id(at), "_forward_hooks"] = (at.__dict__, "_forward_hooks")
        for key, there in at._forward_hooks.items():
            if isinstance(there, Beside):
                seen[id(at._forward_hooks), key] = (at._forward_hooks, key)
    parts = [*(list(seen.values())[i::2] for i in (0, 1)), list(places.values())]
    return [([d for d, _ in part], [key for _, key in part], [d.get(key) for d, key in part]) for part in parts]


def _hold(links: Links) -> bool:
    dicts, keys, there = links
    return list(map(dict.get, dicts, keys)) == there  # the same objects are equal before anybody compares them
