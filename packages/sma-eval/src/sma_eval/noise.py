"""How much chance decides: the spread between seeds at fixed settings. No I/O.

Looked at before any arm is compared, after the Deep Learning Tuning Playbook
(google-research/tuning_playbook): a difference smaller than what seeds do by themselves is none.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import chdtri

from sma_eval.analysis import CONFIDENCE
from sma_eval.effects import Cells, Values


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation of the objective between seeds of one arm.

    Parameters
    ----------
    deviation
        Pooled over arms, each with its degrees of freedom.
    low, high
        Of its chi-squared interval, which assumes about normal values of equal spread in all arms.
    arms
        Each arm's own, where it has two seeds.
    """

    deviation: float
    low: float
    high: float
    arms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What the variation between all trials of a full grid comes from; the four sum to 1.

    Parameters
    ----------
    policy, pool
        Of each factor by itself.
    interaction
        Of the two together, beyond their sum.
    seed
        What is left: seeds, and how they differ from arm to arm.
    """

    policy: float
    pool: float
    interaction: float
    seed: float


def noise(values: Mapping[str, Values]) -> Noise | None:
    """Pool the spread between seeds; None while no arm has two.

    Parameters
    ----------
    values
        Objective of each arm by seed.
    """
    arms = {arm: list(own.values()) for arm, own in values.items() if len(own) > 1}
    degrees = sum(len(own) - 1 for own in arms.values())
    if not degrees:
        return None
    variances = {arm: statistics.variance(own) for arm, own in arms.items()}
    square = sum(variances[arm] * (len(own) - 1) for arm, own in arms.items())
    tail = (1.0 - CONFIDENCE) / 2.0
    return Noise(
        deviation=(square / degrees) ** 0.5,
        low=(square / float(chdtri(degrees, tail))) ** 0.5,
        high=(square / float(chdtri(degrees, 1.0 - tail))) ** 0.5,
        arms={arm: variance**0.5 for arm, variance in variances.items()},
    )


def shares(cells: Cells) -> Shares | None:
    """Split the sum of squares between trials by factor: a two-way analysis of variance.

    None unless every policy level meets every pool on the same seeds, and something varies: a grid
    with holes has no single answer.
    """
    policies = list(dict.fromkeys(policy for policy, _ in cells))
    pools = list(dict.fromkeys(pool for _, pool in cells))
    if len({tuple(sorted(own)) for own in cells.values()}) != 1:
        return None
    mean = {cell: statistics.fmean(own.values()) for cell, own in cells.items() if own}
    if len(mean) < len(policies) * len(pools):
        return None
    grand = statistics.fmean(mean.values())
    of_policy = {p: statistics.fmean(mean[p, q] for q in pools) - grand for p in policies}
    of_pool = {q: statistics.fmean(mean[p, q] for p in policies) - grand for q in pools}
    total = sum((value - grand) ** 2 for own in cells.values() for value in own.values())
    if not total:
        return None
    repeats = len(next(iter(cells.values())))
    policy = repeats * len(pools) * sum(effect**2 for effect in of_policy.values()) / total
    pool = repeats * len(policies) * sum(effect**2 for effect in of_pool.values()) / total
    both = sum((mean[p, q] - grand - of_policy[p] - of_pool[q]) ** 2 for p, q in mean)
    within = sum((x - mean[cell]) ** 2 for cell, own in cells.items() for x in own.values())
    return Shares(policy=policy, pool=pool, interaction=repeats * both / total, seed=within / total)
