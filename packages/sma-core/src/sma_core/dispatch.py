"""Compress and extract: from every step of a batch to the active rows of one sub-module, and back.

A layout decides where the rows lie. Sub-modules see rows and their `Rows`, never the layout.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    padding
        Rows that hold zeros and whose result is dropped; None when there are none.
    """

    sequence: Int[Tensor, "R"]
    position: Int[Tensor, "R"]
    start: Int[Tensor, "B"]
    count: Int[Tensor, "B"]
    padding: Bool[Tensor, "R"] | None = None

    @property
    def group(self) -> Int[Tensor, "R"]:
        """Rows of one group may see each other: a sequence, or the padding behind it."""
        if self.padding is None:
            return self.sequence
        return self.sequence + self.padding * self.start.shape[0]


class Dispatch(ABC):
    """Compress and extract for one sub-module.

    Parameters
    ----------
    active
        Steps at which the sub-module runs.
    position
        Time index of each step.
    size
        What the layout has to know on the host (see `plan`).
    """

    rows: Rows

    def __init__(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], size: int
    ) -> None:
        self.rows = self._arrange(active, position, size)

    @classmethod
    def plan(cls, active: Bool[Tensor, "B T M"], position: Int[Tensor, "B T"]) -> list["Dispatch"]:
        """One dispatch for each of M sub-modules, for one read by the host of M sizes."""
        sizes = cls._sizes(active).tolist()
        return [cls(active[..., m], position, size) for m, size in enumerate(sizes)]

    @staticmethod
    @abstractmethod
    def _sizes(active: Bool[Tensor, "B T M"]) -> Int[Tensor, "M"]: ...

    @abstractmethod
    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], size: int
    ) -> Rows: ...

    @abstractmethod
    def compress(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "R D"]:
        """Take the active steps."""

    @abstractmethod
    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """Put rows back at their steps, zero elsewhere: ``extract(compress(x)) == x * active``."""


class PackedDispatch(Dispatch):
    """Rows of all sequences end to end, R = number of active steps, no padding."""

    @staticmethod
    def _sizes(active: Bool[Tensor, "B T M"]) -> Int[Tensor, "M"]:
        return active.sum((0, 1))

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], size: int
    ) -> Rows:
        self._shape = active.shape
        # The size is known, so this does not read from the device a second time.
        self._index = torch.nonzero_static(active.flatten(), size=size).squeeze(1)
        count = active.sum(1)
        return Rows(
            sequence=self._index // active.shape[1],
            position=position.flatten().index_select(0, self._index),
            start=count.cumsum(0) - count,
            count=count,
        )

    def compress(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "R D"]:
        """See `Dispatch.compress`."""
        return x.flatten(0, 1).index_select(0, self._index)

    def extract(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B T D"]:
        """See `Dispatch.extract`."""
        empty = rows.new_zeros(self._shape.numel(), rows.shape[1])
        return empty.index_copy(0, self._index, rows).unflatten(0, self._shape)


class PaddedDispatch(Dispatch):
    """The layout of Ren et al.: every sequence padded to the longest, by one scatter.

    ``slot = active * cumsum(active)`` numbers the active steps of a sequence from 1. The scatter
    sends every skipped step to slot 0, which is cut off; the gather back reads zero there.
    """

    @staticmethod
    def _sizes(active: Bool[Tensor, "B T M"]) -> Int[Tensor, "M"]:
        return active.sum(1).amax(0)

    def _arrange(
        self, active: Bool[Tensor, "B T"], position: Int[Tensor, "B T"], size: int
    ) -> Rows:
        self._slot = (active * active.cumsum(1)).unsqueeze(-1)
        self._length = size
        batch, count = active.shape[0], active.sum(1)
        start = torch.arange(batch, device=active.device) * size
        return Rows(
            sequence=torch.arange(batch, device=active.device).repeat_interleave(size),
            position=self.compress(position.unsqueeze(-1)).squeeze(-1),
            start=start,
            count=count,
            padding=(torch.arange(size, device=active.device) >= count[:, None]).flatten(),
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


DISPATCHES: dict[str, type[Dispatch]] = {"packed": PackedDispatch, "padded": PaddedDispatch}
