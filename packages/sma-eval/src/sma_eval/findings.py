"""What a study found, beyond its table: noise, effects of each factor, rates, fronts. No I/O.

Each arm stands with its best nuisance values on validation (see `analysis`), its figures are of the
test split, and every difference is paired by seed: the same seed has the same initial weights and
order of the data in both arms, so that what they share cancels.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sma_eval.analysis import (
    ArmSummary,
    Estimate,
    chosen_trials,
    mean_interval,
    result_of,
    summarize,
    validation_cost,
)
from sma_eval.records import TrialRecord
from sma_eval.study import Objective

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]
COSTS = ("flops_per_step", "latency_seconds", "state_bytes")
"""Fields of a table row that a front is drawn against: less is better."""

Values = Mapping[int, float]
"""Objective on the test split by seed."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two things compared on the same seeds.

    Parameters
    ----------
    what, against
        Labels. Positive differences mean that `what` has the larger objective.
    estimate
        Mean over seeds of the difference, with its interval.
    verdict
        Whether `what` is the better one, as far as the interval can tell.
    """

    what: str
    against: str
    estimate: Estimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RateGap:
    """How one arm's activation follows what it was asked for."""

    arm: str
    policy: str
    target: float
    achieved: Estimate


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the trials that have finished say.

    Parameters
    ----------
    seed_deviation
        Standard deviation of the objective between seeds at fixed settings, pooled over arms; None
        while no arm has two seeds.
    policies, pools
        Each policy (at one rate) against the first one, and each pool against the first one; means
        over the levels of the other factor. Seeds in which a trial is missing are left out.
    interactions
        For a policy and a pool, both other than the first: how much the policy's difference to the
        first policy changes when the first pool is replaced by this one. Zero where the two factors
        add up.
    best
        Label of the arm that is best on validation; None while none has finished.
    rivals
        Every other arm against `best`.
    rates
        Of the arms that aim at an activation rate.
    fronts
        For each of `COSTS` that was measured, the labels of the arms that no other beats in both
        objective and cost, cheapest first; by means over seeds.
    """

    seed_deviation: float | None
    policies: tuple[Difference, ...]
    pools: tuple[Difference, ...]
    interactions: tuple[Difference, ...]
    best: str | None
    rivals: tuple[Difference, ...]
    rates: tuple[RateGap, ...]
    fronts: Mapping[str, tuple[str, ...]]


def find(records: Sequence[TrialRecord], objective: Objective) -> Findings:
    """Analyse the trials of a study.

    Parameters
    ----------
    records
        Of every trial, whatever its status.
    objective
        The metric, and which way is better.
    """
    chosen = chosen_trials(records, objective)
    values = {arm: _values(members, objective) for arm, members in chosen.items()}
    first = {record.trial.arm: record for record in reversed(records)}
    level_of = {arm: _policy_level(first[arm]) for arm in chosen}
    policies = list(dict.fromkeys(level_of.values()))
    pools = list(dict.fromkeys(first[arm].trial.pool for arm in chosen))
    cells = {(level_of[arm], first[arm].trial.pool): values[arm] for arm in chosen}

    def compare(what: str, against: str, differences: Values) -> list[Difference]:
        if not differences:
            return []
        estimate = mean_interval(list(differences.values()))
        verdict = _verdict(estimate, objective)
        return [Difference(what=what, against=against, estimate=estimate, verdict=verdict)]

    best = min(
        (arm for arm, members in chosen.items() if members),
        key=lambda arm: statistics.fmean(validation_cost(r, objective) for r in chosen[arm]),
        default=None,
    )
    return Findings(
        seed_deviation=_pooled_deviation(list(values.values())),
        policies=tuple(
            difference
            for level in policies[1:]
            for difference in compare(
                level,
                policies[0],
                _mean([_minus(cells[level, q], cells[policies[0], q]) for q in pools]),
            )
        ),
        pools=tuple(
            difference
            for pool in pools[1:]
            for difference in compare(
                pool,
                pools[0],
                _mean([_minus(cells[p, pool], cells[p, pools[0]]) for p in policies]),
            )
        ),
        interactions=tuple(
            difference
            for level in policies[1:]
            for pool in pools[1:]
            for difference in compare(
                f"{level} with {pool}",
                f"{policies[0]} with {pools[0]}",
                _minus(
                    _minus(cells[level, pool], cells[policies[0], pool]),
                    _minus(cells[level, pools[0]], cells[policies[0], pools[0]]),
                ),
            )
        ),
        best=best,
        rivals=tuple(
            difference
            for arm in chosen
            if best is not None and arm != best
            for difference in compare(arm, best, _minus(values[arm], values[best]))
        ),
        rates=tuple(_rates(chosen)),
        fronts=_fronts(summarize(records, objective), objective),
    )


def _policy_level(record: TrialRecord) -> str:
    rate = record.trial.target_rate
    return record.trial.policy + ("" if rate is None else f" @ {rate}")


def _values(members: Sequence[TrialRecord], objective: Objective) -> Values:
    return {r.trial.seed: result_of(r).test[objective.metric] for r in members}


def _minus(values: Values, others: Values) -> Values:
    """Difference in each seed that both have."""
    return {seed: values[seed] - others[seed] for seed in values if seed in others}


def _mean(columns: Sequence[Values]) -> Values:
    """Mean over columns in each seed that all of them have."""
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    return {seed: statistics.fmean(column[seed] for column in columns) for seed in seeds}


def _verdict(estimate: Estimate, objective: Objective) -> Verdict:
    if estimate.low is None or estimate.high is None:
        return "too few seeds"
    if estimate.low <= 0.0 <= estimate.high:
        return "not distinguishable"
    return "better" if (estimate.mean > 0.0) == (objective.mode == "max") else "worse"


def _pooled_deviation(arms: Sequence[Values]) -> float | None:
    squares = [
        (statistics.variance(list(values.values())), len(values) - 1)
        for values in arms
        if len(values) > 1
    ]
    freedom = sum(degrees for _, degrees in squares)
    if not freedom:
        return None
    return (sum(variance * degrees for variance, degrees in squares) / freedom) ** 0.5


def _rates(chosen: Mapping[str, Sequence[TrialRecord]]) -> list[RateGap]:
    gaps = []
    for arm, members in chosen.items():
        if not members:
            continue
        trial = members[0].trial
        # Policies that hold a rate by themselves carry it as a field of their own.
        target = trial.target_rate if trial.target_rate is not None else _own_rate(trial.model)
        if target is not None:
            achieved = mean_interval([result_of(r).test["activation_rate"] for r in members])
            gaps.append(RateGap(arm=arm, policy=trial.policy, target=target, achieved=achieved))
    return gaps


def _own_rate(model: Mapping[str, Mapping[str, float]]) -> float | None:
    return model["policy"].get("rate")


def _fronts(rows: Sequence[ArmSummary], objective: Objective) -> dict[str, tuple[str, ...]]:
    sign = 1.0 if objective.mode == "min" else -1.0
    fronts: dict[str, tuple[str, ...]] = {}
    for name in COSTS:
        points = [
            (cost, sign * row.objective.mean, row.arm)
            for row in rows
            if row.objective is not None and (cost := getattr(row, name)) is not None
        ]
        if points:
            fronts[name] = tuple(arm for _, _, arm in _front(points))
    return fronts


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Points that no other equals or beats in one coordinate and beats in the other."""

    def beats(a: tuple[float, float, str], b: tuple[float, float, str]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a[:2] != b[:2]

    return sorted(p for p in points if not any(beats(other, p) for other in points))
