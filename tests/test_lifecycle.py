"""Whatever is put on, taken off, replaced, broken off in the middle or done by the host, in any order: what is on is
what a fresh pipeline with the same patches and the same LoRA has, to the bit, and afterwards nothing is left."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import hosts
import pico
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from patching import random_patch
from torch.utils._python_dispatch import TorchDispatchMode

from hotfix.demo import fingerprint
from hotfix.errors import PatchFormatError
from hotfix.patch import Patch
from hotfix.stack import Stack, applied
from hotfix.states import originals

FAMILY = "sd3"
PATCHES = [
    random_patch(pico.HOSTS[FAMILY](), f"patch-{i}", i, rank=i + 1, every=rare) for i, rare in enumerate((1, 2, 1))
]
LORA = {  # state of the host's own LoRA -> how it gets there from none
    "none": lambda pipe, folder: None,
    "on": hosts.load,
    "half": hosts.weigh,
    "off": hosts.disable,
}
chosen = st.lists(st.sampled_from(range(len(PATCHES))), unique=True, max_size=len(PATCHES)).map(tuple)


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


@pytest.fixture(scope="module", autouse=True)
def folder():
    with TemporaryDirectory() as name:
        hosts.styles(FAMILY, Path(name))
        Lifecycle.folder = Path(name)
        Lifecycle.file = PATCHES[0].save(Path(name))
        yield


@cache
def fresh(order: tuple[int, ...], lora: str, fold: bool) -> torch.Tensor:
    """What a pipeline draws that has seen nothing else."""
    pipe = pico.HOSTS[FAMILY]()
    LORA[lora](pipe, Lifecycle.folder)
    Stack.of(*(PATCHES[i] for i in order)).apply(pipe, fold=fold)
    return hosts.draw(pipe, FAMILY)


class Lifecycle(RuleBasedStateMachine):
    folder: Path
    file: Path

    @initialize(fold=st.booleans())
    def begin(self, fold):
        self.pipe, self.fold = pico.HOSTS[FAMILY](), fold
        self.twin = pico.HOSTS[FAMILY]()  # sees what the host does, and nothing else
        self.order: tuple[int, ...] = ()
        self.lora = "none"

    def stack(self, rows):
        return Stack.of(*(PATCHES[i] for i in rows))

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
            Stack.of(Patch.load(self.file)).apply(self.pipe, fold=self.fold)

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
        assert torch.equal(hosts.draw(self.pipe, FAMILY), fresh(self.order, self.lora, fold))
        assert [entry.name for entry in applied(self.pipe)] == [PATCHES[i].name for i in self.order]

    @invariant()
    def leaves_nothing(self):
        if not self.order:
            assert fingerprint(self.pipe) == fingerprint(self.twin)
            assert originals(self.pipe) == 0


Lifecycle.TestCase.settings = settings(max_examples=20, stateful_step_count=40, deadline=None, derandomize=True)
TestLifecycle = Lifecycle.TestCase
