"""What each arm does on the judged rows: events caught, false alarms, metrics of rows.

Thresholds come from validation rows alone; judged rows never move them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.alarms import Threshold, choose_threshold, episode_starts
from sma_pilot.judge.calibration import Reliability
from sma_pilot.judge.classes import apart, measure_classes, runs_of_classes, units_as_events
from sma_pilot.judge.events import (
    DAY_NS,
    NORMAL,
    Events,
    find_events,
    nanoseconds,
    observed_ns,
    row_kinds,
)
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, AlignedSlice
from sma_pilot.judge.metrics import EVENT_RECALL, RowMetric
from sma_pilot.judge.row_metrics import JudgedRows, metrics_of_rows
from sma_pilot.judge.sessions import judged_units
from sma_pilot.judge.statistics import choose_block, time_bins
from sma_pilot.plan import Plan

FALSE_ALARMS = "false_alarms"
# A block of the bootstrap holds at least this quantile of the events' lengths.
TYPICAL_EVENT_QUANTILE = 0.9
# And of the lengths of runs of one class: the usual state lasts long and tells of no memory.
TYPICAL_RUN_QUANTILE = 0.5

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmQuality:
    """One arm on the judged rows. What needs a threshold is None where there is none.

    Attributes
    ----------
    caught : bool [E]
        Of units that have a class: told rightly.
    delay_s : float [E]
        From an event's start to its first alarm (`forecast_anomaly`), or from the first alarm to
        the start (`alarm`: the warning it gives); NaN for a missed event.
    alarm_bins : int64 [A]
        Time bin in which each false alarm begins.
    exposure_of_bin : float64 [B]
        Normal, scored time of each bin, in entity days.
    alarm_share : float
        Share of that time in alarm.
    """

    threshold: Threshold | None
    caught: NDArray[np.bool_] | None
    delay_s: NDArray[np.float64] | None
    alarm_bins: NDArray[np.int64] | None
    exposure_of_bin: NDArray[np.float64]
    alarm_share: float | None
    row_metrics: Mapping[str, RowMetric]
    """By name, those that could be computed."""
    reliability: Reliability | None
    """Of a task whose score is a probability."""
    unscored_rows: int
    values: Mapping[str, float]
    """Event recall and the metrics of rows, where they could be computed."""
    false_alarms_per_day: float | None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of `values`, and of `FALSE_ALARMS`."""

    @property
    def median_delay_s(self) -> float | None:
        """Median of `delay_s` over the caught events; None when none was caught."""
        if self.delay_s is None or np.isnan(self.delay_s).all():
            return None
        return float(np.nanmedian(self.delay_s))

    @property
    def p90_delay_s(self) -> float | None:
        """Nine of ten caught events have at most this `delay_s`; None when none was caught."""
        if self.delay_s is None or np.isnan(self.delay_s).all():
            return None
        return float(np.nanquantile(self.delay_s, 0.9, method="higher"))


def set_thresholds(validation: AlignedSlice, plan: Plan) -> dict[str, Threshold]:
    """Set each arm's threshold to the same declared number of false alarms.

    What is unlabelled counts as normal. An arm without a scored normal row has no threshold, nor
    has any where classes are told and no alarms raised.
    """
    per_day, merge = plan.quality.false_alarms_per_day, plan.quality.alarm_merge
    if per_day is None or merge is None:
        return {}
    validation, exposure = judged_units(validation, plan)
    events = find_events(validation, plan.task)
    normal = row_kinds(validation, events, plan.task, unlabelled_is_normal=True) == NORMAL
    thresholds = {
        arm: choose_threshold(
            score[normal],
            validation.entity[normal],
            validation.time[normal],
            exposure[normal],
            merge_ns=nanoseconds(merge),
            per_day=per_day,
        )
        for arm, score in validation.scores.items()
    }
    return {arm: threshold for arm, threshold in thresholds.items() if threshold is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The judged rows, their events and their bins: what is the same for every arm.

    Of a task that judges by session, a row is a session and an event is an anomalous one. Where
    classes are told, a row is a unit, and each one of a known class is an event.
    """

    rows: AlignedSlice
    plan: Plan
    kinds: NDArray[np.int8]
    events: Events
    events_left_out: int
    incidents: int
    runs_of_rarest: int
    """Of the class that has the fewest; 0 where no classes are told."""
    exposure: NDArray[np.int64]
    bin_of_row: NDArray[np.int64]
    bins: int
    observed_days: float
    """Days in which any entity reported; a silence of all longer than `max_gap` is left out."""
    typical: int
    """How long what is judged usually lasts, in bins: the least length of a block."""

    @classmethod
    def of(cls, rows: AlignedSlice, plan: Plan) -> "Scene":
        """Find the events that the incumbent had a chance to catch, and cut time into bins."""
        observed = observed_ns(rows.time, plan.log.period, plan.log.max_gap)
        rows, exposure = judged_units(rows, plan)
        if plan.task.by_class:
            found, kinds = units_as_events(rows)
        else:
            found = find_events(rows, plan.task)
            kinds = row_kinds(rows, found, plan.task, unlabelled_is_normal=False)
        scored = np.concatenate([[0], np.cumsum(~np.isnan(rows.scores[INCUMBENT]))])
        can_be_caught = scored[found.window_stop] > scored[found.window_start]
        events = found.select(can_be_caught)
        bin_of_row, bins = time_bins(rows.time, nanoseconds(plan.step))
        step = nanoseconds(plan.step)
        starts, lasts = events.start_time, rows.time[events.stop - 1] - events.start_time
        merge = nanoseconds(plan.quality.alarm_merge or plan.log.period)
        rarest = 0
        if plan.task.by_class:
            runs = runs_of_classes(rows, events)
            starts, lasts, rarest = runs.start, runs.lasts, runs.of_rarest(merge)
        share = TYPICAL_RUN_QUANTILE if plan.task.by_class else TYPICAL_EVENT_QUANTILE
        typical = int(np.quantile(lasts + step, share, method="higher")) if lasts.size else step
        return cls(
            rows=rows,
            plan=plan,
            kinds=kinds,
            events=events,
            events_left_out=found.count - events.count,
            incidents=apart(starts, merge),
            runs_of_rarest=rarest,
            exposure=exposure,
            bin_of_row=bin_of_row,
            bins=bins,
            observed_days=observed / DAY_NS,
            typical=typical // step,
        )

    @cached_property
    def judged(self) -> JudgedRows:
        """The rows on which metrics of rows are taken."""
        return JudgedRows.of(self.rows, self.kinds, self.events, self.bin_of_row, self.plan)

    def score(self, arm: str, threshold: Threshold | None) -> ArmQuality:
        """Measure one arm; without a threshold only what needs none."""
        rows, score = self.rows, self.rows.scores[arm]
        scored = ~np.isnan(score)
        normal = (self.kinds == NORMAL) & scored
        days = self.exposure / DAY_NS
        exposure_of_bin = np.zeros(self.bins)
        np.add.at(exposure_of_bin, self.bin_of_row[normal], days[normal])
        if self.plan.task.by_class:
            return self._tell(arm, exposure_of_bin)
        over = None if threshold is None else score > threshold.value  # false where it is NaN
        metrics, reliability = metrics_of_rows(self.judged, score, over, self.plan.task)
        values = {name: metric(np.ones(self.bins)) for name, metric in metrics.items()}
        caught = delay = alarm_bins = alarm_share = rate = None
        if over is not None:
            caught, delay = self._catch(over)
            if self.plan.task.by_session:
                delay = None  # a session is caught as a whole, whenever that was
            if caught.size:
                values[EVENT_RECALL] = float(caught.mean())
            false = np.flatnonzero(over & normal)
            begins = episode_starts(
                rows.entity[false],
                rows.time[false],
                nanoseconds(self.plan.quality.alarm_merge or self.plan.log.period),
            )
            alarm_bins = self.bin_of_row[false[begins]]
            if exposure_of_bin.sum() > 0:
                rate = alarm_bins.size / float(exposure_of_bin.sum())
                alarm_share = float(days[false].sum() / exposure_of_bin.sum())
        return ArmQuality(
            threshold=threshold,
            caught=caught,
            delay_s=delay,
            alarm_bins=alarm_bins,
            exposure_of_bin=exposure_of_bin,
            alarm_share=alarm_share,
            row_metrics=metrics,
            reliability=reliability,
            unscored_rows=int((~scored).sum()),
            values=values,
            false_alarms_per_day=rate,
        )

    def _tell(self, arm: str, exposure_of_bin: NDArray[np.float64]) -> ArmQuality:
        """Measure what classes an arm told."""
        right, metrics, reliability = measure_classes(self.rows, arm, self.events, self.bin_of_row)
        return ArmQuality(
            threshold=None,
            caught=right,
            delay_s=None,
            alarm_bins=None,
            exposure_of_bin=exposure_of_bin,
            alarm_share=None,
            row_metrics=metrics,
            reliability=reliability,
            unscored_rows=int(np.isnan(self.rows.scores[arm]).sum()),
            values={name: metric(np.ones(self.bins)) for name, metric in metrics.items()},
            false_alarms_per_day=None,
        )

    def _catch(self, over: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Find each event's first alarm row within its window."""
        alarm_rows = np.append(np.flatnonzero(over), over.size)
        first = alarm_rows[np.searchsorted(alarm_rows, self.events.window_start)]
        caught = first < self.events.window_stop
        delay = np.full(caught.size, np.nan)
        since = self.rows.time[first[caught]] - self.events.start_time[caught]
        delay[caught] = np.abs(since) / 1e9
        return caught, delay

    def block(self, arms: Mapping[str, ArmQuality], plan: Plan) -> int:
        """Choose the bootstrap's block, in bins: the declared one, or from the loss's memory."""
        if not self.bins:
            return 1
        step = nanoseconds(plan.step)
        if plan.quality.block is not None:
            declared = -(-nanoseconds(plan.quality.block) // step)
            return min(declared, max(1, self.bins // 2))
        incumbent, candidate = arms[INCUMBENT], arms[CANDIDATE]
        loss, carries = np.zeros(self.bins), np.zeros(self.bins, dtype=bool)
        headline = plan.quality.headline
        if headline == EVENT_RECALL:
            if self.events.count and incumbent.caught is not None and candidate.caught is not None:
                lost = incumbent.caught.astype(float) - candidate.caught
                carries[self.bin_of_row[self.events.start]] = True
                # Centred, so that many events at once do not look like a large loss.
                np.add.at(loss, self.bin_of_row[self.events.start], lost - lost.mean())
        else:
            one, other = (arm.row_metrics.get(headline) for arm in (incumbent, candidate))
            if one is not None and other is not None:
                carries[one.carriers] = True
                loss = one.contributions(self.bins) - other.contributions(self.bins)
        floor = self.typical
        if plan.task.horizon is not None:
            floor = max(floor, nanoseconds(plan.task.horizon) // step)
        return choose_block(loss, carries, floor)
