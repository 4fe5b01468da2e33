"""Compress and extract: from every step of a batch to the active rows of one sub-module, and back.

A layout decides where the rows lie. Sub-modules see rows and their `Rows`, never the layout.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


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
    def plan(cls, active: Bool[Tensor, "B T M"], position: Int[Tensor, "B T"]) -> list["Dispatch"]:
        """One dispatch for each of M sub-modules, for one read by the host of 2 M sizes."""
        count = active.sum(1)
        longest = functional.pad(count, (0, 0, 0, 1)).amax(0)  # a batch may be empty
        sizes = torch.stack((count.sum(0), longest), dim=1).tolist()
        return [
            cls(active[..., m], position, total=total, longest=longest)
            for m, (total, longest) in enumerate(sizes)
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

    @classmethod
    def plan(cls, active: Bool[Tensor, "B T M"], position: Int[Tensor, "B T"]) -> list[Dispatch]:
        """See `Dispatch.plan`; an exported graph has no host, and takes bounds for the sizes."""
        if not torch.compiler.is_exporting():
            return super().plan(active, position)
        batch, steps, pool = active.shape
        return [
            cls(active[..., m], position, total=batch * steps, longest=steps) for m in range(pool)
        ]

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], total: int, longest: int
    ) -> Rows:
        self._shape = active.shape
        if torch.compiler.is_exporting():
            self._index = active.flatten().nonzero().squeeze(1)
        else:  # the size is known, so this does not read from the device a second time
            self._index = torch.nonzero_static(active.flatten(), size=total).squeeze(1)
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
        return x.flatten(0, 1).index_select(0, self._index)

    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """See `Dispatch.extract`."""
        batch, steps = self._shape
        empty = rows.new_zeros(batch * steps, rows.shape[1])
        return empty.index_copy(0, self._index, rows).view(batch, steps, -1)


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


class CapacityDispatch(PaddedDispatch):
    """Padded to a length that the shape of the batch alone decides: every size is static.

    The host reads nothing from the device, so that a layer is one graph. What finds no slot must
    be taken out before (`keep_surest`); unused slots are padding.
    """

    @classmethod
    def plan(
        cls,
        active: Bool[Tensor, "B T M"],
        position: Int[Tensor, "B T"],
        slots: Sequence[int] | None = None,
    ) -> list[Dispatch]:
        """One dispatch for each of M sub-modules, of so many slots a sequence; None: T of each."""
        batch, steps, pool = active.shape
        return [
            cls(active[..., m], position, total=batch * size, longest=size)
            for m, size in enumerate(slots or [steps] * pool)
        ]


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
