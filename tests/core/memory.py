"""What a pass really holds and moves, as PyTorch sees it, for the tests of costs."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sma_core import Inputs
from sma_core.model import Outputs, SequenceModel

# They read no element of what they are given, or move none.
_NO_READ = (
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "zeros_like",
    "ones_like",
    "full_like",
)
_NO_MOVE = ("_unsafe_view", "detach")


def _run(model: SequenceModel, inputs: Inputs, dtype: torch.dtype) -> Outputs:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        return model(inputs)


def kept_bytes(model: SequenceModel, inputs: Inputs, dtype: torch.dtype) -> int:
    """Bytes of all storages that a forward pass saves for backward, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, Tensor] = {}  # held, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        _run(model, inputs, dtype)
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in weights)


class _Moved(TorchDispatchMode):
    """Bytes of the inputs and outputs of each aten operation that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NO_MOVE:
            tensors = tree_leaves(out if name in _NO_READ else (args, kwargs, out))
            self.bytes[name] += sum(t.nbytes for t in tensors if isinstance(t, Tensor))
        return out


def moved_bytes(
    model: SequenceModel, inputs: Inputs, dtype: torch.dtype, *, training: bool
) -> Counter[str]:
    """Bytes that an eager pass moves, by operation."""
    with _Moved() as moved, torch.set_grad_enabled(training):
        prediction = _run(model, inputs, dtype).prediction
        if training:
            prediction.float().sum().backward()
    return moved.bytes


class _Alive(TorchDispatchMode):
    """Most bytes alive at once of what operations allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in given or key in self._alive:
                continue

            def gone(_: Any, key: int = key, size: int = size) -> None:
                self.now -= size
                del self._alive[key]

            self._alive[key] = weakref.ref(storage, gone)
            self.now += size
            self.most = max(self.most, self.now)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(model: SequenceModel, inputs: Inputs, dtype: torch.dtype) -> int:
    """Most bytes alive at once in a pass without gradient, weights and inputs left out."""
    with torch.no_grad(), _Alive() as alive:
        _run(model, inputs, dtype)
    return alive.most


def allocated_bytes(
    model: SequenceModel, inputs: Inputs, dtype: torch.dtype, *, training: bool
) -> tuple[int, int]:
    """Most bytes that the CPU's allocator gave out in a pass, and those it has not got back."""
    with torch.set_grad_enabled(training):
        _run(model, inputs, dtype)  # what is made once is made here
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiled:
            outputs = _run(model, inputs, dtype)
    assert profiled.profiler is not None
    # The profiler's types do not tell of what its events of the allocator hold.
    traced: Any = profiled.profiler.kineto_results
    events = [event for event in traced.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del outputs
    return most, held
