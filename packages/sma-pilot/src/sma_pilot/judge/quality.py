"""What the candidate loses against the incumbent, with bounds that time's dependence allows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.confusion import Confusion
from sma_pilot.judge.measurements import BASELINE, CANDIDATE, INCUMBENT, AlignedSlice
from sma_pilot.judge.metrics import EVENT_RECALL, bounded_metrics, loss_of
from sma_pilot.judge.scene import FALSE_ALARMS, ArmQuality, Interval, Scene, set_thresholds
from sma_pilot.judge.statistics import (
    Estimate,
    Statistic,
    bootstrap,
    count_bounds,
    leave_out_stretches,
    metric_loss,
    percentile_bounds,
    recall_loss,
    share_upper_bound,
)
from sma_pilot.plan import Plan

COMPARED = (INCUMBENT, CANDIDATE, BASELINE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """A challenger against a reference on the same events and rows."""

    losses: Mapping[str, Estimate]
    """By how much the challenger is worse, in each resampled metric that both arms have."""
    lost_events: int | None = None
    """Caught, or told rightly, by the reference only."""
    won_events: int | None = None
    """By the challenger only."""


@dataclass(frozen=True, kw_only=True)
class UnitsLeftOut:
    """Judged units that are neither right nor wrong."""

    unlabelled: int
    """Without a class."""
    unseen: int
    """Of a class that training has not: no arm could have told it."""
    runs_of_rarest: int
    """Runs of the judged class that has the fewest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """The judged slice as a whole."""

    arms: Mapping[str, ArmQuality]
    candidate: Comparison
    """Candidate against incumbent."""
    baseline: Comparison | None
    """Baseline against candidate."""
    baseline_for_incumbent: Comparison | None
    """Baseline against incumbent: whether it would do in its place."""
    events: int
    events_left_out: int
    """Without a row that the incumbent scored: nobody could have caught them."""
    incidents: int
    bins: int
    block: int
    observed_days: float
    """Days of the judged slice in which any entity reported."""
    only_incumbent_scored: int
    """Judged rows that the incumbent scored and the candidate did not."""
    only_candidate_scored: int
    """Judged rows that the candidate scored and the incumbent did not."""
    false_alarm_difference: float | None
    """Candidate minus incumbent, a day and entity."""
    false_alarm_difference_interval: Interval | None
    units_left_out: UnitsLeftOut | None = None
    """None where no classes are told."""
    classes: tuple[str, ...] = ()
    """Names of those that are."""

    @property
    def blocks(self) -> int:
        """Number of whole blocks that the judged time holds."""
        return self.bins // self.block


def measure_quality(validation: AlignedSlice, judged: AlignedSlice, plan: Plan) -> Quality:
    """Set thresholds on `validation`, measure on `judged`, and bound the differences."""
    thresholds = set_thresholds(validation, plan)
    scene = Scene.of(judged, plan)
    arms = {arm: scene.score(arm, thresholds.get(arm)) for arm in COMPARED if arm in judged.scores}
    block = scene.block(arms, plan)
    statistics = _statistics(arms, scene, plan)
    samples = (
        bootstrap(statistics, scene.bins, block, plan.quality.resamples, plan.seed)
        if scene.bins
        else {}
    )
    left_out = leave_out_stretches(statistics, scene.bins)
    alpha = plan.quality.alpha
    arms = {arm: _with_intervals(quality, arm, samples, plan) for arm, quality in arms.items()}
    incumbent, candidate = arms[INCUMBENT], arms[CANDIDATE]
    difference = interval = None
    if incumbent.false_alarms_per_day is not None and candidate.false_alarms_per_day is not None:
        difference = candidate.false_alarms_per_day - incumbent.false_alarms_per_day
        drawn = samples[f"{CANDIDATE}/{FALSE_ALARMS}"] - samples[f"{INCUMBENT}/{FALSE_ALARMS}"]
        interval = percentile_bounds(drawn, alpha) if np.ptp(drawn) > 0 else None

    def compare(reference: str, challenger: str) -> Comparison:
        return _compare(
            reference,
            challenger,
            arms,
            samples,
            left_out,
            plan,
            incidents=scene.incidents,
            rarest=scene.runs_of_rarest,
            blocks=scene.bins // block,
            alpha=alpha,
        )

    return Quality(
        arms=arms,
        candidate=compare(INCUMBENT, CANDIDATE),
        baseline=compare(CANDIDATE, BASELINE) if BASELINE in arms else None,
        baseline_for_incumbent=compare(INCUMBENT, BASELINE) if BASELINE in arms else None,
        events=scene.events.count,
        events_left_out=scene.events_left_out,
        incidents=scene.incidents,
        bins=scene.bins,
        block=block,
        observed_days=scene.observed_days,
        only_incumbent_scored=count_only(judged, INCUMBENT, CANDIDATE),
        only_candidate_scored=count_only(judged, CANDIDATE, INCUMBENT),
        false_alarm_difference=difference,
        false_alarm_difference_interval=interval,
        units_left_out=UnitsLeftOut(
            unlabelled=int((scene.rows.label < 0).sum()),
            unseen=int((scene.rows.label >= len(scene.rows.classes)).sum()),
            runs_of_rarest=scene.runs_of_rarest,
        )
        if plan.task.by_class
        else None,
        classes=scene.rows.classes,
    )


def count_only(judged: AlignedSlice, scored: str, other: str) -> int:
    """Count the rows that one arm scored and another did not."""
    return int((~np.isnan(judged.scores[scored]) & np.isnan(judged.scores[other])).sum())


def _statistics(arms: Mapping[str, ArmQuality], scene: Scene, plan: Plan) -> dict[str, Statistic]:
    """Build what is resampled of every arm as a function of the weights of the time bins."""
    event_bins = scene.bin_of_row[scene.events.start]
    statistics: dict[str, Statistic] = {}
    for arm, quality in arms.items():
        for name, metric in quality.row_metrics.items():
            if name in bounded_metrics(plan):
                statistics[f"{arm}/{name}"] = metric
        if quality.caught is not None and event_bins.size and EVENT_RECALL in quality.values:
            statistics[f"{arm}/{EVENT_RECALL}"] = _share(event_bins, quality.caught)
        if quality.alarm_bins is not None and quality.false_alarms_per_day is not None:
            statistics[f"{arm}/{FALSE_ALARMS}"] = _rate(quality.alarm_bins, quality.exposure_of_bin)
    return statistics


def _share(bins: NDArray[np.int64], hit: NDArray[np.bool_]) -> Statistic:
    def statistic(weights: NDArray[np.float64]) -> float:
        weight = weights[bins]
        total = weight.sum()
        return float(weight @ hit / total) if total else float("nan")

    return statistic


def _rate(bins: NDArray[np.int64], exposure_of_bin: NDArray[np.float64]) -> Statistic:
    def statistic(weights: NDArray[np.float64]) -> float:
        # No BLAS product: over this many bins it starts threads, which cost more than the sum, and
        # its last bits depend on how many there are.
        exposure = (weights * exposure_of_bin).sum()
        return float(weights[bins].sum() / exposure) if exposure else float("nan")

    return statistic


def _with_intervals(
    quality: ArmQuality, arm: str, samples: Mapping[str, NDArray[np.float64]], plan: Plan
) -> ArmQuality:
    """Add intervals; where the resamples do not vary, exact ones or none, never one of no width."""
    alpha = plan.quality.alpha
    intervals: dict[str, Interval] = {}
    if quality.caught is not None and EVENT_RECALL in quality.values:
        events, caught = quality.caught.size, int(quality.caught.sum())
        low = 1 - share_upper_bound(events - caught, events, alpha)
        exact = (low, share_upper_bound(caught, events, alpha))
        intervals[EVENT_RECALL] = _wider(exact, samples[f"{arm}/{EVENT_RECALL}"], alpha)
    for name in quality.row_metrics:
        drawn = None
        if name in bounded_metrics(plan):
            drawn = percentile_bounds(samples[f"{arm}/{name}"], alpha)
        if drawn is not None and drawn[1] > drawn[0]:
            intervals[name] = drawn
    if quality.alarm_bins is not None and quality.false_alarms_per_day is not None:
        days = float(quality.exposure_of_bin.sum())
        low, high = count_bounds(quality.alarm_bins.size, alpha)
        exact = (low / days, high / days)
        intervals[FALSE_ALARMS] = _wider(exact, samples[f"{arm}/{FALSE_ALARMS}"], alpha)
    return replace(quality, intervals=intervals)


def _wider(exact: Interval, samples: NDArray[np.float64], alpha: float) -> Interval:
    """Join the interval of independent counts with that of the resamples."""
    drawn = percentile_bounds(samples, alpha) or exact
    return min(exact[0], drawn[0]), max(exact[1], drawn[1])


def _compare(
    reference: str,
    challenger: str,
    arms: Mapping[str, ArmQuality],
    samples: Mapping[str, NDArray[np.float64]],
    left_out: Mapping[str, NDArray[np.float64]],
    plan: Plan,
    incidents: int,
    rarest: int,
    **evidence: Any,
) -> Comparison:
    one, other = arms[reference], arms[challenger]
    losses: dict[str, Estimate] = {}
    lost = won = None
    for metric in bounded_metrics(plan):
        if metric not in one.values or metric not in other.values:
            continue
        loss = loss_of(metric, one.values[metric], other.values[metric])
        # A mean over classes rests on each of them: as if all had as few runs as the rarest.
        classes = arms[reference].row_metrics.get(metric)
        counted = incidents
        if isinstance(classes, Confusion):
            counted = min(incidents, rarest * classes.judged_classes)
        sign = loss_of(metric, 1.0, 0.0)
        drawn, without = (
            sign * (values[f"{reference}/{metric}"] - values[f"{challenger}/{metric}"])
            for values in (samples, left_out)
        )
        if one.caught is None or other.caught is None or metric != EVENT_RECALL:
            losses[metric] = metric_loss(loss, drawn, without, incidents=counted, **evidence)
            continue
        losses[metric] = recall_loss(
            one.caught, other.caught, drawn, without, incidents=incidents, **evidence
        )
    if losses and one.caught is not None and other.caught is not None:
        lost = int((one.caught & ~other.caught).sum())
        won = int((other.caught & ~one.caught).sum())
    return Comparison(losses=losses, lost_events=lost, won_events=won)
