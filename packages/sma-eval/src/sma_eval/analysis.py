"""From trial records to the table: one row per arm, with intervals over seeds. No I/O.

For each arm the nuisance values with the best mean objective on validation stand for the arm; the
row then speaks of the test split. Seeds are the unit of repetition: data and budget are the same
for all, so an interval is about initialisation and order of the data, not about other data.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from sma_eval.records import TrialRecord, TrialResult
from sma_eval.study import Objective

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds, with a two-sided 95 % interval; its ends are None below two seeds."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One row of the table.

    Parameters
    ----------
    arm
        Its label.
    nuisance
        The nuisance values that stand for it, as text; empty when there are none.
    seeds
        Seeds that finished with those values.
    failed, stopped, unfinished
        Trials of the arm that failed, that were stopped as others were better, and that have not
        ended, whatever their nuisance values.
    objective
        On the test split.
    difference
        To the first arm, paired by seed; None for the first arm itself or without common seeds.
    activation_rate, target_rate
        Share of (step, layer, sub-module) that ran, on the test split, and what training aimed at.
    flops_per_step, dense_flops_per_step, latency_seconds, state_bytes
        Means over seeds; the last two are None for models that cannot stream.
    steps, best_step
        Means over seeds of optimiser steps, and of those until the best weights.
    """

    arm: str
    nuisance: str = ""
    seeds: int = 0
    failed: int = 0
    stopped: int = 0
    unfinished: int = 0
    target_rate: float | None = None
    objective: Estimate | None = None
    difference: Estimate | None = None
    activation_rate: float | None = None
    flops_per_step: float | None = None
    dense_flops_per_step: float | None = None
    latency_seconds: float | None = None
    state_bytes: float | None = None
    steps: float | None = None
    best_step: float | None = None

    @property
    def dense_share(self) -> float | None:
        """FLOPs of a step as a share of those with everything active."""
        if self.flops_per_step is None or self.dense_flops_per_step is None:
            return None
        return self.flops_per_step / self.dense_flops_per_step


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean with Student's t interval, which assumes about normal values: with few seeds, wide."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, low=None, high=None)
    quantile = float(stdtrit(len(values) - 1, (1.0 + confidence) / 2.0))
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def summarize(records: Sequence[TrialRecord], objective: Objective) -> list[ArmSummary]:
    """Make one row per arm, in the order of the records.

    Parameters
    ----------
    records
        Of every trial of the study, whatever its status.
    objective
        The metric, and which way is better.
    """
    rows: list[ArmSummary] = []
    reference: dict[int, float] | None = None
    for arm, chosen in chosen_trials(records, objective).items():
        members = [record for record in records if record.trial.arm == arm]
        values = {r.trial.seed: result_of(r).test[objective.metric] for r in chosen}
        difference = None
        if reference is None:
            reference = values
        elif paired := [values[seed] - reference[seed] for seed in values if seed in reference]:
            difference = mean_interval(paired)
        rows.append(_row(arm, members, chosen, values, difference))
    return rows


def chosen_trials(
    records: Sequence[TrialRecord], objective: Objective
) -> dict[str, list[TrialRecord]]:
    """Return the finished trials that stand for each arm: those with its best nuisance values.

    Best is the mean objective on validation over seeds. Values that finished fewer seeds than
    others do not win. Of a population the best member stands for its seed. The list is empty for an
    arm of which none has finished.
    """
    arms: dict[str, list[TrialRecord]] = {}
    for record in records:
        arms.setdefault(record.trial.arm, []).append(record)
    return {arm: _chosen(members, objective) for arm, members in arms.items()}


def best_trial(records: Sequence[TrialRecord], objective: Objective) -> TrialRecord | None:
    """Return the finished trial with the best objective on validation; None when none finished."""
    finished = [record for record in records if record.result is not None]
    return min(finished, key=lambda record: validation_cost(record, objective), default=None)


def result_of(record: TrialRecord) -> TrialResult:
    """Return the result of a finished trial."""
    if record.result is None:
        raise ValueError(f"trial {record.trial.label} is {record.status} and has no result")
    return record.result


def validation_cost(record: TrialRecord, objective: Objective) -> float:
    """Objective of a finished trial on validation, turned so that less is better."""
    value = result_of(record).validation[objective.metric]
    return value if objective.mode == "min" else -value


def _chosen(members: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Finished trials with the nuisance values that stand for an arm: one for each seed."""
    groups: dict[str, dict[int, TrialRecord]] = {}
    for record in members:
        if record.result is not None:
            group = groups.setdefault(record.trial.choice, {})
            other = group.setdefault(record.trial.seed, record)
            if validation_cost(record, objective) < validation_cost(other, objective):
                group[record.trial.seed] = record

    # Values that finished fewer seeds than others must not win by a lucky one.
    def rank(group: Mapping[int, TrialRecord]) -> tuple[int, float]:
        costs = [validation_cost(record, objective) for record in group.values()]
        return -len(group), statistics.fmean(costs)

    return list(min(groups.values(), key=rank, default={}).values())


def _row(
    arm: str,
    members: Sequence[TrialRecord],
    chosen: Sequence[TrialRecord],
    values: dict[int, float],
    difference: Estimate | None,
) -> ArmSummary:
    def mean(figure: Callable[[TrialResult], float | None]) -> float | None:
        known = [value for r in chosen if (value := figure(result_of(r))) is not None]
        return statistics.fmean(known) if known else None

    return ArmSummary(
        arm=arm,
        nuisance=chosen[0].trial.choice if chosen else "",
        seeds=len(chosen),
        failed=sum(record.failed for record in members),
        stopped=sum(record.status == "stopped" for record in members),
        unfinished=sum(record.status in ("pending", "running") for record in members),
        target_rate=members[0].trial.target_rate,
        objective=mean_interval(list(values.values())) if values else None,
        difference=difference,
        activation_rate=mean(lambda result: result.test["activation_rate"]),
        flops_per_step=mean(lambda result: result.flops_per_step),
        dense_flops_per_step=mean(lambda result: result.dense_flops_per_step),
        latency_seconds=mean(lambda result: result.latency_seconds),
        state_bytes=mean(lambda result: result.state_bytes),
        steps=mean(lambda result: result.steps),
        best_step=mean(lambda result: result.best_step),
    )
