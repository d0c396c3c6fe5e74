"""A device that computes on the CPU and refuses what a GPU refuses: tensors of two devices in one operation.

It says nothing of speed or memory. It says that what lies on a device is never mixed with what does not, which on a
machine without one nothing else would. Once `device()` was called the whole process has it: use it in one of its own.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
ATEN = torch.ops.aten
INDEXING = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_)  # by numbers from the host, too
DISPATCH = "PrivateUse1"
ACROSS = (ATEN._to_copy, ATEN.copy_)


class There(Tensor):
    """A tensor on that device; `inner` holds its numbers on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME, 0)
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, new):
        Tensor.data.__set__(self, new)
        self.inner = new.inner

    def __deepcopy__(self, memo):
        new = There(self.inner.detach().clone())
        return nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new

    def tolist(self):
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def storage(self):
        return self.inner.storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def numpy(self, *_):
        raise TypeError(f"a tensor on {NAME} is no numpy array")


def run(func, args, kwargs):
    """One operation, on the CPU, if all that it is given lies where it may."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, There)]
    here = [x for x in given if not isinstance(x, There) and x.dim()]  # a single number may come from anywhere
    kind, wanted, generator = func.overloadpacket, kwargs.get("device"), kwargs.get("generator")
    if kind in INDEXING:
        here = [x for x in (args[0], *args[2:3]) if isinstance(x, Tensor) and not isinstance(x, There) and x.dim()]
    if there and here and kind not in ACROSS:
        raise RuntimeError(f"{func} of two devices: {[(type(x).__name__, tuple(x.shape)) for x in given]}")
    goes = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if goes and generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"{func} on {NAME} with a generator of the {generator.device}")
    kwargs = dict(kwargs) | ({} if wanted is None else {"device": torch.device("cpu")})
    out = func(*tree_map_only(There, lambda x: x.inner, args), **tree_map_only(There, lambda x: x.inner, kwargs))
    if kind is ATEN.copy_:
        return args[0]
    if not goes:
        return out
    known = {id(x.inner): x for x in there}
    out = tree_map_only(Tensor, lambda x: known.get(id(x)) if id(x) in known else There(x), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if there and kind is not ATEN._to_copy else out


class _Everywhere(TorchDispatchMode):
    """Tensors that are made on the device are given no tensor from which torch could know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Backend:
    """What torch asks of a device's module."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def _is_in_bad_fork(self):
        return False

    def _lazy_init(self):
        pass

    def manual_seed_all(self, seed):
        pass

    def device_count(self):
        return 1

    def current_device(self):
        return 0


@contextmanager
def device():
    """The device, for as long as the context lasts."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)
    library = torch.library.Library("aten", "IMPL")  # where torch makes a tensor past every mode
    library.impl(
        "empty_strided", lambda *shape, dtype=None, **_: There(torch.empty_strided(*shape, dtype=dtype)), DISPATCH
    )
    library.impl("empty.memory_format", lambda size, dtype=None, **_: There(torch.empty(size, dtype=dtype)), DISPATCH)
    library.impl("_copy_from", _copied, DISPATCH)
    with _Everywhere():
        yield torch.device(NAME, 0)


def _copied(source, into, non_blocking=False):
    a, b = (x.inner if isinstance(x, There) else x for x in (source, into))
    b.copy_(a)
    return into
