"""Whatever is put on, taken off, replaced, broken off in the middle or done by the host, in any order: what is on is
what a fresh pipeline with the same patches and the same LoRA has, to the bit, and afterwards nothing is left."""

from functools import cache, partial
from pathlib import Path
from unittest import mock

import hosts
import pico
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from patching import random_patch
from torch.utils._python_dispatch import TorchDispatchMode

from hotfix import reach
from hotfix.demo import fingerprint
from hotfix.errors import PatchFormatError
from hotfix.patch import Patch
from hotfix.stack import Stack, applied

SPARSE = (1, 2, 1)  # of each patch: every how many layers it acts on
HISTORIES = {"sd3": 10, "flux": 6, "ddpm": 8, "sd15": 4, "sdxl": 2}  # by what a picture of each takes
LORA = {  # state of the host's own LoRA -> how it gets there from none
    "none": lambda pipe, folder: None,
    "on": hosts.load,
    "half": hosts.weigh,
    "off": hosts.disable,
}
chosen = st.lists(st.sampled_from(range(len(SPARSE))), unique=True).map(tuple)


class Failing(TorchDispatchMode):
    """The n-th operation on tensors, be it an allocation, a copy or a product, finds no memory."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == -1:
            raise MemoryError("injected")
        return operation(*args, **(kwargs or {}))


@cache
def patches(family: str) -> list[Patch]:
    return [random_patch(pico.HOSTS[family](), f"patch-{i}", i, rank=i + 1, every=n) for i, n in enumerate(SPARSE)]


@cache
def fresh(family: str, folder: Path, order: tuple[int, ...], lora: str, fold: bool) -> torch.Tensor:
    """What a pipeline draws that has seen nothing else."""
    pipe = pico.HOSTS[family]()
    LORA[lora](pipe, folder)
    Stack.of(*(patches(family)[i] for i in order)).apply(pipe, fold=fold)
    return hosts.draw(pipe, family)


class Lifecycle(RuleBasedStateMachine):
    def __init__(self, family: str, folder: Path) -> None:
        super().__init__()
        self.family, self.folder = family, folder

    @initialize(fold=st.booleans())
    def begin(self, fold):
        self.pipe, self.fold = pico.HOSTS[self.family](), fold
        self.twin = pico.HOSTS[self.family]()  # sees what the host does, and nothing else
        self.order: tuple[int, ...] = ()
        self.lora = "none"

    def stack(self, rows):
        return Stack.of(*(patches(self.family)[i] for i in rows))

    def changed(self, action, order, n):
        """Do it, or break it off at the n-th operation, if there are so many: all of it, or nothing."""
        try:
            with Failing(n):
                action()
        except MemoryError:
            return
        self.order = order

    @rule(rows=chosen, n=st.integers(0, 200))
    def apply(self, rows, n):
        order = (*self.order, *(i for i in rows if i not in self.order))
        self.changed(lambda: self.stack(rows).apply(self.pipe, fold=self.fold), order, n)

    @rule(rows=chosen, n=st.integers(0, 200))
    def remove(self, rows, n):
        order = tuple(i for i in self.order if i not in rows)
        self.changed(lambda: self.stack(rows).remove(self.pipe), order, n)

    @precondition(lambda self: self.order)
    @rule(rows=chosen, n=st.integers(0, 200))
    def replace_all(self, rows, n):
        kept = tuple(i for i in self.order if i in rows)
        order = (*kept, *(i for i in rows if i not in kept))
        self.changed(lambda: self.stack(self.order).replace(self.pipe, self.stack(rows)), order, n)

    @rule()
    def cannot_read(self):
        with mock.patch.object(Path, "read_bytes", side_effect=OSError(5, "injected")), pytest.raises(PatchFormatError):
            Stack.of(Patch.load(self.folder / "patch-0-1.0.0.safetensors")).apply(self.pipe, fold=self.fold)

    @precondition(lambda self: self.family != "ddpm")  # which has no loader
    @rule(lora=st.sampled_from(sorted(LORA)))
    def host(self, lora):
        for pipe in (self.pipe, self.twin):
            if self.lora != "none":
                pipe.unload_lora_weights()
            LORA[lora](pipe, self.folder)
        self.lora = lora

    @invariant()
    def draws_what_a_fresh_one_draws(self):
        fold = self.fold and bool(self.order)
        assert torch.equal(
            hosts.draw(self.pipe, self.family), fresh(self.family, self.folder, self.order, self.lora, fold)
        )
        assert [entry.name for entry in applied(self.pipe)] == [f"patch-{i}" for i in self.order]

    @invariant()
    def leaves_nothing(self):
        if not self.order:
            assert fingerprint(self.pipe) == fingerprint(self.twin)
            assert all(reach.board(model) is None for model in reach.models(self.pipe).values())


@pytest.mark.parametrize(("family", "histories"), HISTORIES.items())
def test_any_history_leaves_what_a_fresh_pipeline_with_the_same_has(family, histories, tmp_path):
    if family != "ddpm":
        hosts.styles(family, tmp_path)
    patches(family)[0].save(tmp_path)
    run_state_machine_as_test(
        partial(Lifecycle, family, tmp_path),
        settings=settings(max_examples=histories, stateful_step_count=30, deadline=None, derandomize=True),
    )
