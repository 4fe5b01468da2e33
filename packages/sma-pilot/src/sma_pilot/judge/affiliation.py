"""Affiliation precision and recall: how near alarms and events lie to each other in time.

Time is cut into one zone for each event, at the middle between neighbours, and all that is said of
an event stays in its zone [1]_. Of a point of an alarm at distance d from the event, precision is
the chance that a point drawn at random from the zone lies farther away; 1 inside of the event.
Of a point of the event at distance d from the zone's nearest alarm, recall is the chance that a
random point lies farther from it; 1 inside of an alarm, 0 in a zone without any. Both are means
over alarms and over the event of a zone, then over zones; precision leaves out zones without an
alarm. Random alarms score about one half, so the figure is to be read beside theirs.

The means are integrals of functions that are linear in pieces, and are taken exactly.

References
----------
.. [1] A. Huet, J. M. Navarro, D. Rossi, "Local evaluation of time series anomaly detection
   algorithms", KDD 2022.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Edges = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Starts and stops of half-open intervals, in order, none of them empty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Affiliation:
    """Precision and recall of each of E events.

    Attributes
    ----------
    precision : float64 [E]
        NaN where the event's zone holds no alarm.
    recall : float64 [E]
    bin_of_event : int64 [E]
        Time bin that weighs each.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    bin_of_event: NDArray[np.int64]

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return F1 under weights of time bins: the harmonic mean of mean precision and recall.

        0 without any alarm; NaN when no event has weight.
        """
        weights = bin_weights[self.bin_of_event]
        total = weights.sum()
        if total == 0:
            return float("nan")
        alarmed = np.isfinite(self.precision)
        heard = weights[alarmed].sum()
        recall = (weights * self.recall).sum() / total
        if heard == 0 or recall == 0:
            return 0.0
        precision = (weights[alarmed] * self.precision[alarmed]).sum() / heard
        return float(2 * precision * recall / (precision + recall))

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds: its events' precision and recall, half each."""
        added = np.zeros(bins)
        of_event = (np.nan_to_num(self.precision) + self.recall) / (2 * self.recall.size)
        np.add.at(added, self.bin_of_event, of_event)
        return added

    @property
    def carriers(self) -> NDArray[np.int64]:
        """Bins that hold an event."""
        return self.bin_of_event


def affiliate(
    alarms: Edges, events: Edges, zones: Edges
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return affiliation precision and recall of each event.

    Parameters
    ----------
    alarms : two float64 [A]
        Disjoint, in order.
    events : two float64 [E]
        The same; each within its zone.
    zones : two float64 [E]
        From `zones_of`.

    Returns
    -------
    float64 [E]
        Precision, NaN where the zone holds no alarm.
    float64 [E]
        Recall.
    """
    zone, start, stop = _cut(alarms, zones)
    return (
        _precision(zone, start, stop, events, zones),
        _recall(zone, start, stop, events, zones),
    )


def zones_of(events: Edges, series: Edges, series_of_event: NDArray[np.int64]) -> Edges:
    """Cut the series into zones, one for each of their events.

    Parameters
    ----------
    events : two float64 [E]
        On one axis, series after series.
    series : two float64 [S]
        Where each series starts and stops on it.
    series_of_event : int64 [E]
    """
    middle = (events[1][:-1] + events[0][1:]) / 2
    joined = np.diff(series_of_event) == 0
    start, stop = series[0][series_of_event].copy(), series[1][series_of_event].copy()
    start[1:][joined] = middle[joined]
    stop[:-1][joined] = middle[joined]
    return start, stop


def _cut(alarms: Edges, zones: Edges) -> tuple[NDArray[np.int64], *tuple[NDArray[np.float64], ...]]:
    """Cut alarms at the borders of zones: zone, start and stop of each piece, in order."""
    first = np.searchsorted(zones[1], alarms[0], side="right")
    last = np.searchsorted(zones[0], alarms[1])
    counts = np.maximum(last - first, 0)
    alarm = np.repeat(np.arange(counts.size), counts)
    zone = first[alarm] + np.arange(alarm.size) - (np.cumsum(counts) - counts)[alarm]
    start = np.maximum(alarms[0][alarm], zones[0][zone])
    stop = np.minimum(alarms[1][alarm], zones[1][zone])
    return zone, start, stop


def _precision(
    zone: NDArray[np.int64],
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
    events: Edges,
    zones: Edges,
) -> NDArray[np.float64]:
    low, high = events[0][zone], events[1][zone]
    before, after = low - zones[0][zone], zones[1][zone] - high
    length = zones[1][zone] - zones[0][zone]

    def outside(near: NDArray[np.float64], far: NDArray[np.float64]) -> NDArray[np.float64]:
        # Nearer than d lie the event itself and, on each side, what of d the zone has room for.
        near, far = np.maximum(near, 0.0), np.maximum(far, 0.0)
        nearer = _capped(near, far, before) + _capped(near, far, after)
        return (far - near) * (1 - (high - low) / length) - nearer / length

    inside = np.maximum(np.minimum(stop, high) - np.maximum(start, low), 0.0)
    value = inside + outside(low - stop, low - start) + outside(start - high, stop - high)
    size = events[0].size
    total = np.bincount(zone, value, size)
    lasts = np.bincount(zone, stop - start, size)
    return np.divide(total, lasts, out=np.full(size, np.nan), where=lasts > 0)


def _recall(
    zone: NDArray[np.int64],
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
    events: Edges,
    zones: Edges,
) -> NDArray[np.float64]:
    """Each piece of alarm answers for the points that are nearer to it than to its neighbours."""
    low, high = events[0][zone], events[1][zone]
    length = zones[1][zone] - zones[0][zone]
    joined = np.diff(zone) == 0
    middle = (stop[:-1] + start[1:]) / 2
    since, until = low.copy(), high.copy()
    since[1:][joined] = np.maximum(low[1:], middle)[joined]
    until[:-1][joined] = np.minimum(high[:-1], middle)[joined]

    def outside(
        near: NDArray[np.float64], far: NDArray[np.float64], room: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        # A point at distance d from the alarm's edge has d towards it, and room - d beyond.
        near, far = np.maximum(near, 0.0), np.maximum(far, 0.0)
        nearer = (far**2 - near**2) / 2 + _folded(near, far, room)
        return (far - near) - nearer / length

    inside = np.maximum(np.minimum(stop, until) - np.maximum(start, since), 0.0)
    value = inside
    value = value + outside(start - until, start - since, start - zones[0][zone])
    value = value + outside(since - stop, until - stop, zones[1][zone] - stop)
    # A piece may answer for no point of the event.
    value = np.where(until > since, value, 0.0)
    return np.bincount(zone, value, events[0].size) / (events[1] - events[0])


def _capped(
    near: NDArray[np.float64], far: NDArray[np.float64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integral of min(x, most) from `near` to `far`."""

    def antiderivative(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(x <= most, x**2 / 2, most * x - most**2 / 2)

    return antiderivative(far) - antiderivative(near)


def _folded(
    near: NDArray[np.float64], far: NDArray[np.float64], room: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integral of min(x, room - x) from `near` to `far`."""

    def antiderivative(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(x <= room / 2, x**2 / 2, room * x - x**2 / 2 - room**2 / 4)

    return antiderivative(far) - antiderivative(near)
