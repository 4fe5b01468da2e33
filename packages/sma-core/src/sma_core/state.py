"""What a model carries from step to step: a tree of tensors with the batch as first axis."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

Tree = TypeVar("Tree", bound="TensorState")  # not Self: run-time type checkers refuse that one


class TensorState:
    """Base of state dataclasses: fields are tensors [B, ...], states, lists of these, or None."""

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over the tensors of the tree, in field order."""
        return (tensor for _, tensor in self.named_tensors())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the tensors with their place in the tree, ``layers.0.ema`` for one."""
        return _walk("", self)

    def map(self: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
        """Build a new tree with `function` applied to every tensor."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        mapped = {f.name: _map(getattr(self, f.name), function) for f in fields}
        return dataclasses.replace(self, **mapped)  # type: ignore[type-var]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def clone(self: Tree) -> Tree:
        """Copy without sharing memory."""
        return self.map(Tensor.clone)

    def select(self: Tree, index: Int[Tensor, "K"]) -> Tree:
        """Copy the given batch rows, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def narrow(self: Tree, start: int, length: int) -> Tree:
        """View `length` batch rows from `start` on: what is written to them is written here."""
        return self.map(lambda tensor: tensor.narrow(0, start, length))

    def put(self: Tree, index: Int[Tensor, "K"], rows: Tree) -> None:
        """Overwrite the given batch rows, no row twice, with those of another tree of this kind."""
        for ours, theirs in zip(self.tensors(), rows.tensors(), strict=True):
            ours.index_copy_(0, index.to(ours.device), theirs)

    def to(self: Tree, device: Any) -> Tree:
        """Copy to another device."""
        return self.map(lambda tensor: tensor.to(device))


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Map what a field or a list holds; what is neither tensor, state nor list stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorState):
        return value.map(function)
    return [_map(item, function) for item in value] if isinstance(value, list) else value


def _walk(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Depth first, under names joined by dots; what is neither tensor, state nor list has none."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, TensorState):
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            yield from _walk(f"{name}.{field.name}".lstrip("."), getattr(value, field.name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _walk(f"{name}.{place}", item)


@dataclass
class State(TensorState):
    """State of a whole model; `forward` and `step` update it in place.

    Parameters
    ----------
    position
        Steps taken so far by each sequence of the batch.
    layers
        One state per layer, as the architecture defines it.
    pooled
        Sum over steps of the last layer's output, for sequence classification; else None.
    """

    position: Int[Tensor, "B"]
    layers: list[Any]
    pooled: Float[Tensor, "B D"] | None = None

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.position.shape[0]
