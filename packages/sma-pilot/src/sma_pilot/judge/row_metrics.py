"""The metrics of rows of one arm: which rows count, where they lie in time, and what is built.

Only rows that the incumbent and the candidate both scored are measured, so that every arm is
measured on the same ones.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.affiliation import Affiliation, Edges, affiliate, zones_of
from sma_pilot.judge.calibration import Reliability, squared_error
from sma_pilot.judge.events import NORMAL, POSITIVE, Events, nanoseconds
from sma_pilot.judge.life import life_errors, life_of_rows
from sma_pilot.judge.means import MeanOfRows
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, AlignedSlice
from sma_pilot.judge.metrics import (
    AFFILIATION_F1,
    AVERAGE_PRECISION,
    BRIER,
    MAE,
    RMSE,
    VUS_PR,
    RowMetric,
)
from sma_pilot.judge.ranking import RankedRows
from sma_pilot.judge.volume import RangeLabels, RangeVolume
from sma_pilot.plan import Plan, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedRows:
    """The rows that count, and where they lie: the same for every arm.

    Attributes
    ----------
    used : bool [N]
        Normal or positive, and scored by both arms that are compared.
    positive : bool [N]
    time : int64 [N]
        Nanoseconds since the epoch.
    place : float64 [N]
        Position in time, in periods; entities follow each other on this axis, with a silence
        between them longer than the widest buffer.
    bin_of_row : int64 [N]
    entity : int32 [N]
    events : Events
    width : int
        Widest buffer of VUS-PR, in periods.
    """

    used: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    time: NDArray[np.int64]
    place: NDArray[np.float64]
    bin_of_row: NDArray[np.int64]
    entity: NDArray[np.int32]
    events: Events
    width: int

    @classmethod
    def of(
        cls,
        rows: AlignedSlice,
        kinds: NDArray[np.int8],
        events: Events,
        bin_of_row: NDArray[np.int64],
        plan: Plan,
    ) -> "JudgedRows":
        """Pick the rows of a slice that count, given what each counts as."""
        both = ~np.isnan(rows.scores[INCUMBENT]) & ~np.isnan(rows.scores[CANDIDATE])
        since = (rows.time - rows.time.min(initial=0)) / nanoseconds(plan.log.period)
        if rows.rows:
            since -= since.min()
        apart = np.ceil(since.max(initial=0)) + plan.quality.vus_width(plan.log.period) + 2
        return cls(
            used=both & (kinds >= NORMAL),
            positive=kinds == POSITIVE,
            time=rows.time,
            place=since + apart * rows.entity,
            bin_of_row=bin_of_row,
            entity=rows.entity,
            events=events,
            width=plan.quality.vus_width(plan.log.period),
        )

    @cached_property
    def bins(self) -> NDArray[np.int64]:
        """Time bins of the rows that count."""
        return self.bin_of_row[self.used]

    @cached_property
    def labels(self) -> RangeLabels:
        """Buffers around the events; there is at least one."""
        rows = np.flatnonzero(self.used)
        event = np.searchsorted(self.events.window_start, rows, side="right") - 1
        place = np.rint(self.place[rows]).astype(np.int64)
        return RangeLabels.of(place, self.positive[rows], event, self.bins, self.width)

    @cached_property
    def spans(self) -> Edges:
        """Each row as the time until the next of its entity, at most one period."""
        length = np.ones(self.place.size)
        np.minimum(np.diff(self.place), 1.0, out=length[:-1])
        return self.place, self.place + length

    def affiliation(self, over: NDArray[np.bool_]) -> Affiliation:
        """Hold the rows in alarm [N] against the events."""
        start, stop = self.spans
        last = np.flatnonzero(np.diff(self.entity, append=-1))
        first = np.concatenate([[0], last[:-1] + 1])
        events = (start[self.events.window_start], stop[self.events.window_stop - 1])
        series = np.searchsorted(last, self.events.window_start)
        alarm = over & self.used
        zones = zones_of(events, (start[first], stop[last]), series)
        precision, recall = affiliate((start[alarm], stop[alarm]), events, zones)
        bins = self.bin_of_row[self.events.window_start]
        return Affiliation(precision=precision, recall=recall, bin_of_event=bins)


def metrics_of_rows(
    rows: JudgedRows,
    score: NDArray[np.float32],
    over: NDArray[np.bool_] | None,
    task: Task,
) -> tuple[dict[str, RowMetric], Reliability | None]:
    """Build the metrics that one arm has on the rows that count.

    Parameters
    ----------
    rows : JudgedRows
    score : float32 [N]
    over : bool [N], optional
        Rows in alarm; None without a threshold.
    task : Task
        The score of `alarm` is the probability that a row is positive, and of `remaining_life`
        it is 1 less the predicted life.

    Returns
    -------
    dict of str to RowMetric
        Empty where this arm left a row that counts without a score.
    Reliability or None
        Of `alarm`.
    """
    metrics: dict[str, RowMetric] = {}
    ranked, positive = score[rows.used], rows.positive[rows.used]
    if not ranked.size or np.isnan(ranked).any():
        return metrics, None
    if positive.any():
        metrics[AVERAGE_PRECISION] = RankedRows(ranked, positive, rows.bins)
    if positive.any() and not task.by_session:
        metrics[VUS_PR] = RangeVolume(ranked, rows.labels, rows.bins)
        if over is not None:
            metrics[AFFILIATION_F1] = rows.affiliation(over)
    if task.kind == "remaining_life" and task.horizon is not None:
        horizon = nanoseconds(task.horizon)
        life = life_of_rows(rows.time, rows.positive, rows.events, horizon)[rows.used]
        metrics[MAE], metrics[RMSE] = life_errors(ranked, life, rows.bins)
    if task.kind != "alarm":
        return metrics, None
    metrics[BRIER] = MeanOfRows(squared_error(ranked, positive), rows.bins)
    return metrics, Reliability.of(ranked, positive)
