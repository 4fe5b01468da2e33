"""Events of a slice, where each may be caught, and what every row counts as."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.measurements import AlignedSlice
from sma_pilot.plan import Task

DAY_NS = 86_400 * 10**9

# What a row counts as. An excluded row is neither right nor wrong to alarm on.
EXCLUDED, NORMAL, POSITIVE = -1, 0, 1


def nanoseconds(duration: timedelta) -> int:
    """Return a duration as whole nanoseconds, without the rounding of `total_seconds`."""
    return duration // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """The E events of a slice: runs of rows with label > 0, entity by entity.

    Attributes
    ----------
    start, stop : int64 [E]
        Rows of the event, as a half-open range of the slice.
    window_start, window_stop : int64 [E]
        Rows on which an alarm catches the event: the event itself (`forecast_anomaly`), or the
        rows of the entity up to `horizon` before it and outside of other events (`alarm`).
    start_time : int64 [E]
        Nanoseconds since the epoch.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    window_start: NDArray[np.int64]
    window_stop: NDArray[np.int64]
    start_time: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of events E."""
        return self.start.size

    def select(self, keep: NDArray[np.bool_]) -> "Events":
        """Return the events where `keep` [E] is true."""
        return Events(**{name: column[keep] for name, column in vars(self).items()})


def find_events(rows: AlignedSlice, task: Task) -> Events:
    """Find the events of a slice and the rows that catch each.

    A row of unknown label ends an event, as does a change of entity.
    """
    inside = rows.label > 0
    new_entity = np.diff(rows.entity, prepend=-1) != 0
    before = np.concatenate([[False], inside[:-1]])
    start = np.flatnonzero(inside & (~before | new_entity))
    goes_on = np.concatenate([inside[1:] & ~new_entity[1:], [False]])[: rows.rows]
    stop = np.flatnonzero(inside & ~goes_on) + 1
    window_start, window_stop = start, stop
    if task.horizon is not None:
        horizon = nanoseconds(task.horizon)
        entity_start = np.flatnonzero(new_entity)
        window_start = np.empty_like(start)
        previous_stop = 0
        for index, row in enumerate(start):
            first = max(
                entity_start[np.searchsorted(entity_start, row, "right") - 1], previous_stop
            )
            near = np.searchsorted(rows.time[first:row], rows.time[row] - horizon)
            window_start[index] = first + near
            previous_stop = stop[index]
        window_stop = start
    return Events(
        start=start,
        stop=stop,
        window_start=window_start,
        window_stop=window_stop,
        start_time=rows.time[start],
    )


def row_kinds(
    rows: AlignedSlice, events: Events, task: Task, *, unlabelled_is_normal: bool
) -> NDArray[np.int8]:
    """Say of each row [N] whether an alarm on it is right, wrong or neither.

    For `alarm`, rows inside an event are excluded, and so are an entity's last rows: what comes
    within `horizon` of them lies past the slice, so nobody knows whether an alarm were right.
    """
    known_normal = rows.label <= 0 if unlabelled_is_normal else rows.label == 0
    kinds = np.where(known_normal, NORMAL, EXCLUDED).astype(np.int8)
    if task.horizon is not None and rows.rows:
        last_row = np.flatnonzero(np.diff(rows.entity, append=-1) != 0)
        rows_of_entity = np.diff(last_row, prepend=-1)
        last_time = np.repeat(rows.time[last_row], rows_of_entity)
        kinds[rows.time > last_time - nanoseconds(task.horizon)] = EXCLUDED
    # Windows of an alarm leave events out, so rows inside an event stay excluded there.
    kinds[_covered(events.window_start, events.window_stop, rows.rows)] = POSITIVE
    return kinds


def exposure_ns(rows: AlignedSlice, period: timedelta, max_gap: timedelta) -> NDArray[np.int64]:
    """Return the time [N] each row stands for: until the entity's next row.

    A row before a gap longer than `max_gap`, or the last of its entity, stands for one period.
    """
    step = np.diff(rows.time, append=0)
    last = np.diff(rows.entity, append=-1) != 0
    return np.where(last | (step > nanoseconds(max_gap)), nanoseconds(period), step)


def observed_ns(time: NDArray[np.int64], period: timedelta, max_gap: timedelta) -> int:
    """Return the time in which any entity had rows [N]; a silence longer than `max_gap` is none."""
    steps = np.diff(np.unique(time))
    one = nanoseconds(period)
    return int(np.where(steps > nanoseconds(max_gap), one, steps).sum()) + (one if time.size else 0)


def _covered(start: NDArray[np.int64], stop: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    edges = np.zeros(size + 1, dtype=np.int64)
    np.add.at(edges, start, 1)
    np.add.at(edges, stop, -1)
    return np.cumsum(edges[:-1]) > 0
