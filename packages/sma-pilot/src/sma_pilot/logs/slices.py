"""Where the log's time is cut: borders of the slices, and sequences within them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sma_pilot.errors import LogError
from sma_pilot.plan import Border, Slices

SLICES = ("train", "validation", "judged")
TRAIN, VALIDATION, JUDGED = range(3)
OUTSIDE = 3
"""Slice number of rows at or after ``judged_until``: they are left out."""


@dataclass(frozen=True)
class Borders:
    """Edges of the slices in ns: slice i holds the times from `edges[i]` up to `edges[i + 1]`."""

    edges: tuple[int, int, int, int]

    @classmethod
    def of(cls, slices: Slices, first: int, last: int) -> "Borders":
        """Place the plan's borders on a log that runs from `first` to `last` (ns, inclusive).

        Raises
        ------
        LogError
            When a slice would lie wholly outside the log's time.
        """
        inner = [
            place_border(border, first, last)
            for border in (slices.validation_from, slices.judged_from)
        ]
        until = slices.judged_until
        edges = (first, *inner, last + 1 if until is None else place_border(until, first, last))
        for name, border in zip(("validation_from", "judged_from"), inner, strict=True):
            if not first < border <= last:
                raise LogError(
                    f"slices.{name} is {iso(border)}, but the log runs from {iso(first)} to "
                    f"{iso(last)}; move the border into it"
                )
        return cls(edges)  # pyright: ignore[reportArgumentType]

    def slice_of(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slice number of each time, `OUTSIDE` from ``judged_until`` on."""
        return np.searchsorted(np.asarray(self.edges[1:]), time, side="right")

    def end_of(self, slice_number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the end of each slice (exclusive, ns)."""
        return np.asarray(self.edges)[np.minimum(slice_number + 1, OUTSIDE)]


@dataclass
class SequenceCutter:
    """Tells where sequences start: at a new entity, a new slice, or after a silence.

    Fed with the pieces of a log in order; carries the last row of an entity from piece to piece.
    """

    borders: Borders
    max_gap: int
    _entity: int = -1
    _time: int = 0
    _slice: int = -1

    def cut(
        self, entity: int, time: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Cut the next piece.

        Returns
        -------
        slices : int64 [T]
            Slice number of each row.
        starts : bool [T]
            Whether the row starts a sequence.
        gaps : bool [T]
            Whether a silence longer than `max_gap` lies before the row.
        """
        slices = self.borders.slice_of(time)
        known = entity == self._entity
        silence = np.diff(time, prepend=self._time if known else time[0])
        gaps = silence > self.max_gap
        starts = gaps | (np.diff(slices, prepend=self._slice if known else -1) != 0)
        self._entity, self._time, self._slice = entity, int(time[-1]), int(slices[-1])
        return slices, starts, gaps


def nanoseconds(duration: timedelta) -> int:
    """Return a duration as whole nanoseconds, without the rounding of `total_seconds`."""
    return duration // timedelta(microseconds=1) * 1000


def iso(time: int) -> str:
    """Write a time in ns for people, to the second."""
    return f"{np.datetime64(time, 'ns').astype('datetime64[s]')}Z"


def place_border(border: Border, first: int, last: int) -> int:
    """Return the time of a border, ns, in a log that runs from `first` to `last`."""
    if isinstance(border, float):
        return first + round(border * (last - first))
    # Whole microseconds, the resolution of a datetime: a float of seconds would lose some.
    moment = cast(datetime, border)
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 10**9 + moment.microsecond * 1000
