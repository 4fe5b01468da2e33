"""The smallest loss that a log can prove, known before the candidate is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sma_pilot.judge.statistics import (
    FEWEST_FOR_DESIGN_EFFECT,
    STRETCHES,
    paired_upper_bound,
    student,
)

LIKELY_DISCORDANCE = 0.05
"""Share of events on which two arms of like quality differ, where nothing is known of them."""
POWER = 0.8
EVENTS_OF_A_BLOCK = 5
_DRAWS = 400


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a log holds to prove a loss of event recall with.

    Attributes
    ----------
    events, incidents : int
        Judged events, and those that start together counted as one.
    blocks : int
        Stretches of judged time that are taken as independent.
    days : float
        Judged days in which any entity reported.
    design_effect : float
        Variance of a mean over the events, over that of independent events.
    """

    events: int
    incidents: int
    blocks: int
    days: float
    design_effect: float

    @property
    def groups(self) -> int:
        """Blocks that the judge may be left with, once it chooses their length by the loss.

        On independent events the length that it finds is chance: some of their distances.
        """
        return max(2, min(self.blocks, self.events // EVENTS_OF_A_BLOCK))

    def times(self, factor: float) -> "Evidence":
        """Return what a log that goes on alike would hold, `factor` times as long."""
        return replace(
            self,
            events=math.ceil(self.events * factor),
            incidents=math.ceil(self.incidents * factor),
            blocks=math.floor(self.blocks * factor),
            days=self.days * factor,
        )


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """What is assumed of a candidate that is not there yet: its true loss is zero.

    Attributes
    ----------
    discordance : float
        Share of events on which the arms differ, half of them lost and half won.
    alpha : float
        One-sided error rate of the judge's bound.
    power : float
        Wanted chance that such a candidate passes.
    """

    discordance: float = LIKELY_DISCORDANCE
    alpha: float
    power: float = POWER


def smallest_provable_loss(evidence: Evidence, assumed: Assumption, seed: int = 0) -> float:
    """Return the limit under which the judge's bound falls with the wanted chance.

    It is the `power` quantile of the bound, over what such a candidate may do: lost and won
    events are drawn as events / design effect independent units, the design effects that the judge
    would find are drawn about the true one with as many degrees of freedom as it has groups, and
    each draw is bounded by the judge's own `paired_upper_bound`.

    Parameters
    ----------
    evidence : Evidence
        With at least one event and two blocks.
    assumed : Assumption
    seed : int
        The same seed gives the same answer.

    Returns
    -------
    float
        In the unit of event recall, at most 1.
    """
    generator = np.random.default_rng(seed)
    bounds = [
        _bound(lost, won, effects, evidence, assumed.alpha)
        for lost, won, *effects in _candidates(evidence, assumed, generator)
    ]
    return float(np.quantile(bounds, assumed.power, method="higher"))


def needed_for(limit: float, evidence: Evidence, assumed: Assumption, seed: int = 0) -> Evidence:
    """Return how much more of the same log would prove a loss under `limit`.

    Parameters
    ----------
    limit : float
        Over zero.
    evidence : Evidence
        What is there; returned as it is if it does.
    """

    def enough(factor: float) -> bool:
        return smallest_provable_loss(evidence.times(factor), assumed, seed) <= limit

    there = smallest_provable_loss(evidence, assumed, seed)
    if there <= limit:
        return evidence
    # A bound shrinks with the root of the events, an exact one with their number.
    low, high = 1.0, (there / limit) ** 1.5
    while not enough(high):
        low, high = high, 1.5 * high
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return evidence.times(high)


def _candidates(
    evidence: Evidence, assumed: Assumption, generator: np.random.Generator
) -> Sequence[tuple[float, ...]]:
    """Draw what candidates lose and win, and what the judge makes of the dependence.

    Each draw is lost and won events, then the design effect found by the bootstrap's blocks and by
    the long stretches.
    """
    units = max(1, round(evidence.events / evidence.design_effect))
    of_unit = evidence.events / units
    half = assumed.discordance / 2
    counts = generator.multinomial(units, [half, half, 1 - 2 * half], size=_DRAWS)
    found = [
        evidence.design_effect * generator.chisquare(groups - 1, _DRAWS) / (groups - 1)
        for groups in (evidence.groups, STRETCHES)
    ]
    return list(zip(*(of_unit * counts[:, :2].T), *found, strict=True))


def _bound(
    lost: float, won: float, effects: Sequence[float], evidence: Evidence, alpha: float
) -> float:
    """Bound one drawn loss as `recall_loss` does."""
    few = lost + won < FEWEST_FOR_DESIGN_EFFECT
    # What few differing events seem to remember does not lengthen the blocks.
    groups = (evidence.blocks if few else evidence.groups, STRETCHES)
    opinions = list(zip(effects, groups, strict=True))[: 1 if few else 2]
    least = evidence.events / evidence.incidents if few else 1.0
    bounds = []
    for effect, size in opinions:
        effect = min(max(least, effect if lost + won else 1.0), float(evidence.events))
        total = evidence.events / effect
        t = student(alpha, size)
        bounds.append(paired_upper_bound(lost / effect, won / effect, total, alpha, t))
    return max(bounds)
