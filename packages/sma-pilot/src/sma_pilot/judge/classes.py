"""What is judged where classes are told: units, each right or wrong as events are caught or not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_pilot.errors import RunError
from sma_pilot.judge.calibration import Reliability
from sma_pilot.judge.confusion import BalancedAccuracy, Confusion, MacroF1
from sma_pilot.judge.events import EXCLUDED, POSITIVE, Events
from sma_pilot.judge.means import MeanOfRows
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, AlignedSlice
from sma_pilot.judge.metrics import ACCURACY, BALANCED_ACCURACY, BRIER, MACRO_F1, RowMetric


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Runs of units of one entity and one class.

    What is told wrongly at one window of a run tends to be so at the next: a run is for units what
    an event is for rows.

    Attributes
    ----------
    start, lasts : int64 [R]
        ns.
    label : int32 [R]
    """

    start: NDArray[np.int64]
    lasts: NDArray[np.int64]
    label: NDArray[np.int32]

    def of_rarest(self, merge_ns: int) -> int:
        """Return how many runs the rarest class has, those that start together counted as one."""
        counts = [apart(self.start[self.label == k], merge_ns) for k in np.unique(self.label)]
        return min(counts, default=0)


def apart(start: NDArray[np.int64], merge_ns: int) -> int:
    """Count what starts at least `merge_ns` after the one before."""
    return int((np.diff(np.sort(start)) >= merge_ns).sum()) + 1 if start.size else 0


def units_as_events(units: AlignedSlice) -> tuple[Events, NDArray[np.int8]]:
    """Return the units of a known class as events, and what every unit [N] counts as.

    A unit without a class, or of one that training has not, is neither right nor wrong.
    """
    counts = (units.label >= 0) & (units.label < len(units.classes))
    rows = np.flatnonzero(counts)
    events = Events(
        start=rows,
        stop=rows + 1,
        window_start=rows,
        window_stop=rows + 1,
        start_time=units.time[rows],
    )
    return events, np.where(counts, POSITIVE, EXCLUDED).astype(np.int8)


def runs_of_classes(units: AlignedSlice, events: Events) -> Runs:
    """Find the runs of the units that count."""
    rows = events.start
    entity, label, time = units.entity[rows], units.label[rows], units.time[rows]
    new = (np.diff(entity, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0)
    first = np.flatnonzero(new)
    last = np.append(first[1:], rows.size)[: first.size] - 1
    return Runs(start=time[first], lasts=time[last] - time[first], label=label[first])


def measure_classes(
    units: AlignedSlice, arm: str, events: Events, bin_of_row: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], dict[str, RowMetric], Reliability | None]:
    """Return which units [E] an arm told rightly, its metrics, and how honest it is.

    Metrics are taken on the units that incumbent and candidate both told, so that every arm is
    measured on the same ones; they are empty where this arm left one of those out.

    Raises
    ------
    RunError
        The replay holds no classes of the arm.
    """
    if arm not in units.predicted:
        raise RunError(f"{units.name}: arm {arm!r} told no classes; replay again")
    rows = events.start
    right = (units.predicted[arm] == units.label) & ~np.isnan(units.scores[arm])
    both = ~np.isnan(units.scores[INCUMBENT][rows]) & ~np.isnan(units.scores[CANDIDATE][rows])
    used = rows[both]
    confidence = units.scores[arm][used]
    if not used.size or np.isnan(confidence).any():
        return right[rows], {}, None
    label, predicted, bins = units.label[used], units.predicted[arm][used], bin_of_row[used]
    classes = len(units.classes)
    metrics: dict[str, RowMetric] = {
        ACCURACY: MeanOfRows(right[used].astype(np.float64), bins),
        BALANCED_ACCURACY: BalancedAccuracy(label, predicted, bins, classes),
        MACRO_F1: MacroF1(label, predicted, bins, classes),
        BRIER: MeanOfRows(units.squared_error[arm][used].astype(np.float64), bins),
    }
    return right[rows], metrics, Reliability.of(confidence, right[used])


def confusion_table(metrics: Mapping[str, RowMetric]) -> NDArray[np.float64] | None:
    """Return how many units of each class [K] were told to be of each [K]; None without metrics."""
    own = metrics.get(BALANCED_ACCURACY)
    if not isinstance(own, Confusion):
        return None
    return own.table(np.ones(int(own.carriers.max()) + 1))
