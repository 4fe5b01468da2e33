"""Compress and extract: from every step of a batch to the active rows of one sub-module, and back.

A layout decides where the rows lie. Sub-modules see rows and their `Rows`, never the layout.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sma_core.tracing import is_compiling, is_exporting


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where R rows come from. Rows of one sequence lie side by side, in time order.

    Parameters
    ----------
    sequence
        Batch index of each row.
    position
        Time index of each row in its sequence.
    start, count
        First row, and number of active rows, of each sequence.
    longest
        Largest count, or a bound of it, known to the host.
    padding
        Rows that hold zeros and whose result is dropped; None when there are none.
    """

    sequence: Int[Tensor, "R"]
    position: Int[Tensor, "R"]
    start: Int[Tensor, "B"]
    count: Int[Tensor, "B"]
    longest: int
    padding: Bool[Tensor, "R"] | None = None

    @property
    def group(self) -> Int[Tensor, "R"]:
        """Rows of one group may see each other: a sequence, or the padding behind it."""
        if self.padding is None:
            return self.sequence
        return self.sequence + self.padding * self.start.shape[0]

    @property
    def place(self) -> Int[Tensor, "R"]:
        """Number of each row in its sequence, from 0."""
        row = torch.arange(self.sequence.shape[0], device=self.sequence.device)
        return row - self.start.index_select(0, self.sequence)

    def by_sequence(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "B N D"]:
        """Lay out rows sequence by sequence, zeros behind each; N is `longest`, but at least 1."""
        batch, steps = self.start.shape[0], max(1, self.longest)
        slot = self.sequence * steps + self.place
        empty = x.new_zeros(batch * steps, x.shape[1])
        return empty.index_copy(0, slot, x).view(batch, steps, x.shape[1])

    def end_to_end(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "R D"]:
        """Inverse of `by_sequence`."""
        slot = self.sequence * x.shape[1] + self.place
        return x.flatten(0, 1).index_select(0, slot)


class _MoveRows(torch.autograd.Function):
    """A gather whose gradient is one too, by the inverse map: no sum, so no atomics.

    A compiler fuses gathers with what reads them: no tensor of zeros is ever written.
    """

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_zeros(index.shape[0], x.shape[1])
        return x.index_select(0, index.clamp_min(0)).where((index >= 0).unsqueeze(1), 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        index, inverse = ctx.saved_tensors
        return _MoveRows.apply(gradients[0], inverse, index), None, None


class Dispatch(ABC):
    """Compress and extract for one sub-module.

    Parameters
    ----------
    active
        Steps at which the sub-module runs.
    position
        Time index of each step.
    total, longest
        Number of active steps, and the largest number of them in a sequence, as the host knows
        them.
    """

    rows: Rows

    def __init__(
        self,
        active: Bool[Tensor, "B T"],
        position: Int[Tensor, "B T"],
        *,
        total: int,
        longest: int,
    ) -> None:
        self.rows = self._arrange(active, position, total, longest)

    @classmethod
    def sizes(cls, active: Bool[Tensor, "B T M"]) -> Int[Tensor, "M 2"]:
        """Count the active steps of each sub-module, and the most of them in a sequence."""
        count = active.sum(1)
        longest = functional.pad(count, (0, 0, 0, 1)).amax(0)  # a batch may be empty
        return torch.stack((count.sum(0), longest), dim=1)

    @classmethod
    def plan(
        cls,
        active: Bool[Tensor, "B T M"],
        position: Int[Tensor, "B T"],
        sizes: list[list[int]] | None = None,
    ) -> list["Dispatch"]:
        """One dispatch for each of M sub-modules.

        Parameters
        ----------
        active
            Steps at which each sub-module runs.
        position
            Time index of each step.
        sizes
            What the method `sizes` found, as the host read it; None reads it here.
        """
        return [
            cls(active[..., m], position, total=total, longest=longest)
            for m, (total, longest) in enumerate(sizes or cls.sizes(active).tolist())
        ]

    @abstractmethod
    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], total: int, longest: int
    ) -> Rows: ...

    @abstractmethod
    def compress(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "R D"]:
        """Take the active steps."""

    @abstractmethod
    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """Put rows back at their steps, zero elsewhere: ``extract(compress(x)) == x * active``."""


class PackedDispatch(Dispatch):
    """Rows of all sequences end to end, R = number of active steps, no padding."""

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], total: int, longest: int
    ) -> Rows:
        self._shape = active.shape
        flat = active.flatten()
        if is_exporting():
            self._index = flat.nonzero().squeeze(1)
        else:  # the size is known, so this does not read from the device a second time
            self._index = torch.nonzero_static(flat, size=total).squeeze(1)
        # Row of each step, -1 where it has none: only a compiler makes use of it.
        self._slot = (flat.cumsum(0) - 1).where(flat, -1) if is_compiling() else None
        count = active.sum(1)
        return Rows(
            sequence=self._index // active.shape[1],
            position=position.flatten().index_select(0, self._index),
            start=count.cumsum(0) - count,
            count=count,
            longest=longest,
        )

    def compress(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "R D"]:
        """See `Dispatch.compress`."""
        x = x.flatten(0, 1)
        if self._slot is not None:
            return cast("Tensor", _MoveRows.apply(x, self._index, self._slot))
        return x.index_select(0, self._index)

    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """See `Dispatch.extract`."""
        batch, steps = self._shape
        if self._slot is not None:
            moved = cast("Tensor", _MoveRows.apply(rows, self._slot, self._index))
        else:
            empty = rows.new_zeros(batch * steps, rows.shape[1])
            moved = empty.index_copy(0, self._index, rows)
        return moved.view(batch, steps, -1)


class PaddedDispatch(Dispatch):
    """The layout of Ren et al.: every sequence padded to the longest, by one scatter.

    ``slot = active * cumsum(active)`` numbers the active steps of a sequence from 1. The scatter
    sends every skipped step to slot 0, which is cut off; the gather back reads zero there.
    """

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], total: int, longest: int
    ) -> Rows:
        self._slot = (active * active.cumsum(1)).unsqueeze(-1)
        self._length = longest
        batch, count = active.shape[0], active.sum(1)
        sequence = torch.arange(batch, device=active.device)
        return Rows(
            sequence=sequence.unsqueeze(1).expand(-1, longest).flatten(),
            position=self.compress(position.unsqueeze(-1)).squeeze(-1),
            start=sequence * longest,
            count=count,
            longest=longest,
            padding=(torch.arange(longest, device=active.device) >= count[:, None]).flatten(),
        )

    def compress(self, x: Float[Tensor, "B T D"] | Int[Tensor, "B T D"]) -> Tensor:
        """See `Dispatch.compress`."""
        batch, _, width = x.shape
        slots = x.new_zeros(batch, self._length + 1, width)
        return slots.scatter(1, self._slot.expand_as(x), x)[:, 1:].flatten(0, 1)

    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """See `Dispatch.extract`."""
        batch, width = self._slot.shape[0], rows.shape[1]
        slots = rows.view(batch, self._length, width)
        slots = torch.cat((slots.new_zeros(batch, 1, width), slots), dim=1)
        return slots.gather(1, self._slot.expand(-1, -1, width))


class CapacityDispatch(Dispatch):
    """Padded to a length that the shape of the batch alone decides: every size is static.

    The host reads nothing from the device, so that a layer is one graph. What finds no slot must
    be taken out before (`keep_surest`); unused slots are padding. One scatter of step numbers
    selects and re-packs; features then move by gathers, forward and backward.
    """

    @classmethod
    def plan(
        cls,
        active: Bool[Tensor, "B T M"],
        position: Int[Tensor, "B T"],
        sizes: list[list[int]] | None = None,
    ) -> list[Dispatch]:
        """See `Dispatch.plan`; without sizes every step has a slot."""
        return super().plan(active, position, sizes or largest_sizes(active))

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], total: int, longest: int
    ) -> Rows:
        self._shape = active.shape
        batch, steps = active.shape
        sequence = torch.arange(batch, device=active.device)
        count = active.sum(1)
        step = torch.arange(batch * steps, device=active.device)
        # Skipped steps meet in a slot that is cut off; empty slots likewise in a step.
        slots = step.new_full((batch, longest + 1), -1).scatter(
            1, (active.cumsum(1) - 1).where(active, longest), step.view(batch, steps)
        )
        self._index = slots[:, :longest].flatten()
        home = self._index.where(self._index >= 0, batch * steps)
        row = torch.arange(batch * longest, device=active.device)
        self._slot = row.new_full((batch * steps + 1,), -1).scatter(0, home, row)[:-1]
        return Rows(
            sequence=sequence.unsqueeze(1).expand(-1, longest).flatten(),
            position=position.flatten().index_select(0, self._index.clamp_min(0)),
            start=sequence * longest,
            count=count,
            longest=longest,
            padding=self._index < 0,
        )

    def compress(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "R D"]:
        """See `Dispatch.compress`."""
        x = x.flatten(0, 1)
        if is_compiling():
            return cast("Tensor", _MoveRows.apply(x, self._index, self._slot))
        taken = x.index_select(0, self._index.clamp_min(0))
        return taken.masked_fill((self._index < 0).unsqueeze(1), 0.0)

    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """See `Dispatch.extract`."""
        if is_compiling():
            moved = cast("Tensor", _MoveRows.apply(rows, self._slot, self._index))
        else:
            # One slot more than steps, which all padding shares, and which is cut off.
            steps = self._shape.numel()
            at = self._index.where(self._index >= 0, steps)
            moved = rows.new_zeros(steps + 1, rows.shape[1]).index_copy(0, at, rows)[:steps]
        return moved.unflatten(0, self._shape)


def largest_sizes(active: Bool[Tensor, "B T M"]) -> list[list[int]]:
    """Sizes as `Dispatch.sizes` would find them if all were active: the host knows them."""
    batch, steps, pool = active.shape
    return [[batch * steps, steps]] * pool


def capacity_slots(share: Fraction, steps: int) -> int:
    """Slots of a sequence of T steps: its share, rounded up, and one at least.

    In whole numbers: 0.1 of 30 steps is 3 of them, also where a traced graph does the division.
    """
    return max(1, (steps * share.numerator + share.denominator - 1) // share.denominator)


def keep_surest(
    active: Bool[Tensor, "B T M"], confidence: Float[Tensor, "B T M"], slots: Sequence[int]
) -> Bool[Tensor, "B T M"]:
    """Keep as many active steps of each sequence as it has slots: the surest, of equals the first.

    Parameters
    ----------
    active
        Steps at which each sub-module is to run.
    confidence
        How sure that is.
    slots
        Of each sub-module.
    """
    sureness = confidence.detach().masked_fill(~active, -1.0)
    order = sureness.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(active.shape[1], device=active.device)
    fits = torch.stack([place < size for size in slots], dim=1)  # [T, M]
    return active & torch.zeros_like(active).scatter(1, order, fits.expand_as(order))


DISPATCHES: dict[str, type[Dispatch]] = {
    "packed": PackedDispatch,
    "padded": PaddedDispatch,
    "capacity": CapacityDispatch,
}
