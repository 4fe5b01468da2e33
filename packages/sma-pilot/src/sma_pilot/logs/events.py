"""Events of a log, and the target of the task "a failure within the next h"."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sma_pilot.logs.blocks import Block
from sma_pilot.logs.labels import EVENT, UNKNOWN
from sma_pilot.logs.slices import OUTSIDE, SLICES, Borders


class EventIndex:
    """Where events start and how far each row's future was watched, of every entity.

    An event is a run of event rows of an entity within a slice: a silence does not end it, only a
    row that says otherwise does. A watched stretch is a run of labelled rows
    within a sequence: it ends at a silence, at a slice's border, or where labels end.
    """

    def __init__(self) -> None:
        self.events = [0] * len(SLICES)
        self._starts: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        self._ends: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        self._entity = -1
        self._last_time = 0
        self._last_label = UNKNOWN
        self._last_slice = OUTSIDE

    def add(self, block: Block) -> None:
        """Add the next block in order."""
        if block.entity != self._entity:
            self.finish()
        inside = block.slices < OUTSIDE
        label = np.where(inside, block.label, UNKNOWN)
        before = np.concatenate([[self._last_label], label[:-1]])
        before_time = np.concatenate([[self._last_time], block.time[:-1]])
        same_slice = np.diff(block.slices, prepend=self._last_slice) == 0
        joined = ~block.starts
        begins = (label >= EVENT) & ~(same_slice & (before >= EVENT))
        ended = (before != UNKNOWN) & ~(joined & (label != UNKNOWN))
        self._starts[block.entity].append(block.time[begins])
        self._ends[block.entity].append(before_time[ended])
        for number, count in _counts(block.slices[begins]):
            self.events[number] += count
        self._entity = block.entity
        self._last_time, self._last_label = int(block.time[-1]), int(label[-1])
        self._last_slice = int(block.slices[-1])

    def finish(self) -> None:
        """Close the last entity's open stretch."""
        if self._last_label != UNKNOWN:
            self._ends[self._entity].append(np.array([self._last_time]))
        self._last_label = UNKNOWN

    def starts_of(self, entity: int) -> NDArray[np.int64]:
        """Return the times at which events of an entity start, rising."""
        return np.concatenate(self._starts[entity] or [np.empty(0, np.int64)])

    def target(self, block: Block, borders: Borders, horizon: int) -> NDArray[np.int32]:
        """Return the target of each row: 1 when an event starts within `horizon` ns, 0, or -1."""
        remaining = self.remaining(block, borders, horizon)
        return np.where(remaining < 0, UNKNOWN, remaining <= horizon).astype(np.int32)

    def remaining(self, block: Block, borders: Borders, horizon: int) -> NDArray[np.int64]:
        """Return the time from each row to its next event, ns; `horizon` + 1 where it is farther.

        Known in [start - horizon, start) of an event of the row's own slice. It is -1 (ignored)
        within an event, without a label, and where its future was not watched to the horizon's end:
        before a slice's border, above all, so that no label of a later slice reaches an earlier
        one. Elsewhere the next event is farther than the horizon.
        """
        time = block.time
        starts = self.starts_of(block.entity)
        ends = np.concatenate(self._ends[block.entity] or [np.empty(0, np.int64)])
        never = np.iinfo(np.int64).max
        following = np.append(starts, never)[np.searchsorted(starts, time, side="right")]
        # horizon is added to time, not taken from `never`, so nothing overflows.
        announced = (following <= time + horizon) & (following < borders.end_of(block.slices))
        watched_until = np.append(ends, 0)[np.searchsorted(ends, time)]
        watched = time + horizon <= watched_until
        farther = np.where(watched, horizon + 1, UNKNOWN)
        remaining = np.where(announced, following - time, farther)
        return np.where(block.label == 0, remaining, UNKNOWN)


def _counts(slices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    numbers, counts = np.unique(slices, return_counts=True)
    return zip(numbers.tolist(), counts.tolist(), strict=True)
