"""Differences that are paired by seed: of policies, of pools, of both together. No I/O.

The same seed has the same initial weights and order of the data in every arm, so what arms share
cancels in a difference within a seed, and the differences of several seeds make an interval.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import stdtr

from sma_eval.analysis import Estimate, mean_interval
from sma_eval.records import TrialRecord
from sma_eval.space import Trial
from sma_eval.study import Objective

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]

Values = Mapping[int, float]
"""Objective on the test split by seed."""
Cells = Mapping[tuple[str, str], Values]
"""The same for each (policy level, pool); absent or empty where nothing has finished."""


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
    seeds
        Seeds that both have.
    p_value
        Of a two-sided paired t test against no difference; None below two seeds.
    adjusted_p
        The same after Holm's correction for all comparisons of its family.
    """

    what: str
    against: str
    estimate: Estimate
    verdict: Verdict
    seeds: int
    p_value: float | None
    adjusted_p: float | None


def policy_level(trial: Trial) -> str:
    """Name a trial's policy with the rate that it is trained towards: a level of that factor."""
    return trial.policy + ("" if trial.target_rate is None else f" @ {trial.target_rate}")


def policy_levels(records: Sequence[TrialRecord]) -> list[str]:
    """List the policy levels of some trials in their order."""
    return list(dict.fromkeys(policy_level(record.trial) for record in records))


def policy_effects(cells: Cells, objective: Objective) -> tuple[Difference, ...]:
    """Compare each policy level with the first, as a mean over the pools.

    A seed that lacks one of the trials is left out.
    """
    policies, pools = _levels(cells)
    return compared(
        (
            (
                policy,
                policies[0],
                mean_over([_apart(cells, (policy, q), (policies[0], q)) for q in pools]),
            )
            for policy in policies[1:]
        ),
        objective,
    )


def pool_effects(cells: Cells, objective: Objective) -> tuple[Difference, ...]:
    """Compare each pool with the first, as a mean over the policy levels; seeds likewise."""
    policies, pools = _levels(cells)
    return compared(
        (
            (
                pool,
                pools[0],
                mean_over([_apart(cells, (p, pool), (p, pools[0])) for p in policies]),
            )
            for pool in pools[1:]
        ),
        objective,
    )


def interactions(cells: Cells, objective: Objective) -> tuple[Difference, ...]:
    """Say how far a policy's difference to the first changes when the first pool is replaced.

    One for every policy and pool other than the first; zero where the two factors add up.
    """
    policies, pools = _levels(cells)
    return compared(
        (
            (
                f"{policy} with {pool}",
                f"{policies[0]} with {pools[0]}",
                minus(
                    _apart(cells, (policy, pool), (policies[0], pool)),
                    _apart(cells, (policy, pools[0]), (policies[0], pools[0])),
                ),
            )
            for policy in policies[1:]
            for pool in pools[1:]
        ),
        objective,
    )


def compared(
    pairs: Iterator[tuple[str, str, Values]], objective: Objective
) -> tuple[Difference, ...]:
    """Make a family of comparisons of (what, against, differences by seed); empty ones left out."""
    family = [
        Difference(
            what=what,
            against=against,
            estimate=(estimate := mean_interval(list(differences.values()))),
            verdict=_verdict(estimate, objective),
            seeds=len(differences),
            p_value=paired_p(list(differences.values())),
            adjusted_p=None,
        )
        for what, against, differences in pairs
        if differences
    ]
    tested = [d for d in family if d.p_value is not None]
    adjusted = holm([d.p_value for d in tested if d.p_value is not None])
    by_label = {(d.what, d.against): p for d, p in zip(tested, adjusted, strict=True)}
    return tuple(replace(d, adjusted_p=by_label.get((d.what, d.against))) for d in family)


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p value of Student's t test that the differences have mean zero."""
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0.0:
        return 0.0 if mean else 1.0
    t = abs(mean) / (deviation / len(differences) ** 0.5)
    return 2.0 * float(stdtr(len(differences) - 1, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values so that one of them below alpha by chance alone has probability alpha.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the k-th smallest of n
    is multiplied by n - k + 1, and none may fall below the one before it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def minus(values: Values, others: Values) -> Values:
    """Difference in each seed that both have."""
    return {seed: values[seed] - others[seed] for seed in values if seed in others}


def mean_over(columns: Sequence[Values]) -> Values:
    """Mean over columns in each seed that all of them have."""
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    return {seed: statistics.fmean(column[seed] for column in columns) for seed in seeds}


def _apart(cells: Cells, one: tuple[str, str], other: tuple[str, str]) -> Values:
    return minus(cells.get(one, {}), cells.get(other, {}))


def _levels(cells: Cells) -> tuple[list[str], list[str]]:
    policies, pools = zip(*cells, strict=True) if cells else ((), ())
    return list(dict.fromkeys(policies)), list(dict.fromkeys(pools))


def _verdict(estimate: Estimate, objective: Objective) -> Verdict:
    if estimate.low is None or estimate.high is None:
        return "too few seeds"
    if estimate.low <= 0.0 <= estimate.high:
        return "not distinguishable"
    return "better" if (estimate.mean > 0.0) == (objective.mode == "max") else "worse"
