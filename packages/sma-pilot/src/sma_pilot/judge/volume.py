"""VUS-PR: the volume under the surface of range-based precision and recall.

A label that is one row off is worth nothing to average precision and much to a plant. So each
event is given a buffer in which an alarm counts in part, the less the farther from the event, and
average precision is taken for every width of the buffer up to a largest one. Their mean is VUS-PR
[1]_. It needs no threshold, and it adjusts no point: a row that is not over the threshold is
never counted as found.

Of a width w, a row at distance d outside an event is a positive of weight ``sqrt(1 - d / w)`` while
d <= w / 2, and of weight 1 in reach of two events. With TP the weight over the threshold,

    precision = TP / rows over the threshold
    recall    = TP / (rows of events + half of the buffers' weight over the threshold)

and recall is multiplied by the share of events, buffers that touch being one, that have a row over
the threshold. Thresholds are the scores at evenly spread ranks.

References
----------
.. [1] J. Paparrizos, P. Boniol, T. Palpanas, R. Tsay, A. Elmore, M. Franklin, "Volume under the
   surface: a new accuracy evaluation measure for time-series anomaly detection", PVLDB 15, 2022.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = 250
LARGEST_WIDTHS = 101
"""Widths of the buffer that are tried at most; fewer than there are rows in it are spread evenly.
Up to a largest width of 100 rows all of them are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RangeLabels:
    """Rows of events and rows near them: what is the same for every arm.

    Attributes
    ----------
    near : int64 [K]
        Rows inside an event or at most half of the largest width from one.
    kind : int64 [K]
        Which of the profiles each has.
    profiles : float64 [U, W]
        Weight as a positive under each of W widths. The first profile is that of a row inside an
        event: 1 under all.
    half : int64 [W]
        How far the buffer of each width reaches, in periods.
    pair_row, pair_event, pair_distance : int64 [P]
        Every row in reach of an event, with that event and the distance; 0 inside it.
    gaps : int64 [E]
        Distance from the event before to this one; larger than any reach where there is none.
    event_bin : int64 [E]
        Time bin in which each event starts.
    """

    near: NDArray[np.int64]
    kind: NDArray[np.int64]
    profiles: NDArray[np.float64]
    half: NDArray[np.int64]
    pair_row: NDArray[np.int64]
    pair_event: NDArray[np.int64]
    pair_distance: NDArray[np.int64]
    gaps: NDArray[np.int64]
    event_bin: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        place: NDArray[np.int64],
        positive: NDArray[np.bool_],
        event_of_row: NDArray[np.int64],
        bin_of_row: NDArray[np.int64],
        width: int,
    ) -> Self:
        """Find who is near which event.

        Parameters
        ----------
        place : int64 [N]
            Position in time, in periods, never falling; entities lie farther apart than `width`.
        positive : bool [N]
            Rows of events.
        event_of_row : int64 [N]
            Number of the event of each positive row, never falling; unread for other rows.
        bin_of_row : int64 [N]
        width : int
            Largest width of a buffer, in periods.
        """
        widths = np.unique(np.linspace(0, width, min(width + 1, LARGEST_WIDTHS)).astype(np.int64))
        inside = np.flatnonzero(positive)
        starts = np.flatnonzero(np.diff(event_of_row[inside], prepend=-1))
        stops = np.append(starts[1:], inside.size)
        first, last = place[inside[starts]], place[inside[stops - 1]]
        events = np.arange(starts.size)
        reach = width // 2
        # A row that rounds to the place of an event's first or last row lies just outside of it.
        left, left_event = _ranges(place, first - reach, first + 1)
        right, right_event = _ranges(place, last, last + reach + 1)
        row = np.concatenate([inside, left, right])
        event = np.concatenate([np.repeat(events, stops - starts), left_event, right_event])
        distance = np.concatenate(
            [
                np.zeros(inside.size, np.int64),
                np.maximum(first[left_event] - place[left], 1),
                np.maximum(place[right] - last[right_event], 1),
            ]
        )
        kept = (distance == 0) | (~positive[row] & (distance <= reach))
        row, event, distance = row[kept], event[kept], distance[kept]
        near, nearest, second = _two_nearest(row, distance, beyond=reach + 1)
        keys, kind = np.unique(nearest * (reach + 2) + second, return_inverse=True)
        # An event is there, so the smallest key is that of the rows inside of one.
        return cls(
            near=near,
            kind=kind.astype(np.int64),
            profiles=_profiles(keys // (reach + 2), keys % (reach + 2), widths),
            half=widths // 2,
            pair_row=row,
            pair_event=event,
            pair_distance=distance,
            gaps=np.concatenate([[width + 1], first[1:] - last[:-1]])[: starts.size],
            event_bin=bin_of_row[inside[starts]],
        )


class RangeVolume:
    """VUS-PR of one arm under weights of time bins; a call costs little more than N additions.

    A resample of time weighs rows and events by how often their bin was drawn. What an event's
    buffer is, and the thresholds that are tried, are those of the log as it was.

    Parameters
    ----------
    score : float32 [N]
        No NaN.
    labels : RangeLabels
        Of the same N rows, with at least one event.
    bin_of_row : int64 [N]
    """

    def __init__(
        self, score: NDArray[np.float32], labels: RangeLabels, bin_of_row: NDArray[np.int64]
    ) -> None:
        ranks = np.linspace(0, score.size - 1, THRESHOLDS).astype(np.int64)
        falling = -np.sort(-score)[ranks]
        # The first threshold that each row is over: from that one on it is an alarm.
        step = np.searchsorted(-falling, -score).astype(np.int64)
        self._labels = labels
        order = np.argsort(step, kind="stable")
        self._bins = bin_of_row[order]
        self._stops = np.searchsorted(step[order], np.arange(THRESHOLDS), side="right")
        self._near_bins = bin_of_row[labels.near]
        self._cells = labels.kind * THRESHOLDS + step[labels.near]
        self._segments, self._segment_bins = self._find_segments(step)
        self.carriers = self._near_bins[labels.kind == 0]

    def _find_segments(self, step: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Cell (reach, first threshold found) and bin of every run of touching buffers."""
        labels = self._labels
        reaches, events = int(labels.half[-1]) + 1, labels.gaps.size
        found = np.full((events, reaches), THRESHOLDS - 1, np.int64)
        pairs = (labels.pair_event, labels.pair_distance)
        np.minimum.at(found, pairs, step[labels.pair_row])
        found = np.minimum.accumulate(found, axis=1)
        cells, bins = [], []
        for reach in range(reaches):
            starts = np.flatnonzero(labels.gaps > 2 * reach)
            cells.append(reach * THRESHOLDS + np.minimum.reduceat(found[:, reach], starts))
            bins.append(labels.event_bin[starts])
        return np.concatenate(cells), np.concatenate(bins)

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return VUS-PR; NaN when no row of an event has weight."""
        precision, recall = self._surface(bin_weights)
        if recall is None:
            return float("nan")
        gained = np.diff(recall, axis=1, prepend=0.0)
        return float((gained * precision).sum(axis=1).mean())

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds, to first order: its events' rows at their precision."""
        precision, _ = self._surface(np.ones(bins))
        inside = self._labels.kind == 0
        mean = precision.mean(axis=0)[self._cells[inside] % THRESHOLDS]
        added = np.zeros(bins)
        np.add.at(added, self.carriers, mean / self.carriers.size)
        return added

    def _surface(
        self, bin_weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Precision and recall [W, thresholds]; no recall where events have no weight."""
        labels = self._labels
        shape = (len(labels.profiles), THRESHOLDS)
        alarms = np.concatenate([[0.0], bin_weights[self._bins].cumsum()])[self._stops]
        mass = np.bincount(self._cells, bin_weights[self._near_bins], shape[0] * shape[1])
        over = mass.reshape(shape).cumsum(axis=1)
        # No BLAS product: its last bits depend on the number of threads.
        right = np.einsum("uw,uk->wk", labels.profiles, over)
        precision = np.divide(right, alarms, out=np.zeros_like(right), where=alarms > 0)
        found = np.bincount(
            self._segments, bin_weights[self._segment_bins], (labels.half[-1] + 1) * THRESHOLDS
        ).reshape(-1, THRESHOLDS)
        found = found.cumsum(axis=1)
        inside, segments = over[0, -1], found[:, -1:]
        if inside == 0 or (segments == 0).any():
            return precision, None
        existence = (found / segments)[labels.half]
        recall = np.minimum(right / (inside + (right - over[0]) / 2), 1.0)
        return precision, recall * existence


def _ranges(
    place: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows with a place in [start, stop) of each event, and the number of that event."""
    begin, end = np.searchsorted(place, start), np.searchsorted(place, stop)
    counts = end - begin
    event = np.repeat(np.arange(start.size), counts)
    before = np.cumsum(counts) - counts
    return np.arange(event.size) - (before - begin)[event], event


def _two_nearest(
    row: NDArray[np.int64], distance: NDArray[np.int64], beyond: int
) -> tuple[NDArray[np.int64], ...]:
    """Each row once, with the distances of its nearest and second nearest event."""
    order = np.lexsort((distance, row))
    row, distance = row[order], distance[order]
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    nearest = distance[starts]
    after = np.append(distance[1:], beyond)[starts]
    alone = np.diff(starts, append=row.size) == 1
    # Inside of an event another one changes nothing.
    second = np.where(alone | (nearest == 0), beyond, after)
    return row[starts], nearest, second


def _profiles(
    nearest: NDArray[np.int64], second: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Weight [U, W] under each width of rows with these distances.

    Two buffers' weights add up to no more than 1; as each is at least sqrt(1/2), they always do.
    """
    reach = widths // 2
    share = nearest[:, None] / np.maximum(widths, 1)
    one = np.where(nearest[:, None] <= reach, np.sqrt(np.maximum(1 - share, 0.0)), 0.0)
    return np.where(second[:, None] <= reach, 1.0, one)
