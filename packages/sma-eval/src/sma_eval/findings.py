"""What a study found, beyond its table: noise, effects of each factor, rates, fronts. No I/O.

Each arm stands with its best nuisance values on validation (see `analysis`), its figures are of the
test split, and every difference is paired by seed (see `effects`).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sma_eval.analysis import chosen_trials, result_of, summarize, validation_cost
from sma_eval.effects import (
    Difference,
    compared,
    interactions,
    minus,
    policy_effects,
    policy_level,
    pool_effects,
)
from sma_eval.fronts import Bargain, bargains, fronts, joint_front
from sma_eval.noise import Noise, Shares, noise, shares
from sma_eval.rates import RateGap, RateResponse, rate_gaps, rate_responses
from sma_eval.records import TrialRecord
from sma_eval.study import Objective


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the trials that have finished say.

    Parameters
    ----------
    noise
        Spread of the objective between seeds at fixed settings; None while no arm has two seeds.
    shares
        What the variation between trials comes from; None unless the grid is full.
    policies, pools
        Each policy (at one rate) against the first one, and each pool against the first one; means
        over the levels of the other factor.
    interactions
        For a policy and a pool, both other than the first: how much the policy's difference to the
        first policy changes when the first pool is replaced by this one.
    best
        Label of the arm that is best on validation; None while none has finished.
    rivals
        Every other arm against `best`.
    bargains
        For each cost, the cheapest arm that is not told from `best`, where it is cheaper.
    rates, responses
        Of the arms that aim at an activation rate, and of the policies that do so at several.
    fronts
        For each cost that was measured, the labels of the arms that no other beats in both
        objective and cost, cheapest first.
    joint_front
        The arms that no other beats in the objective and all measured costs.
    """

    noise: Noise | None
    shares: Shares | None
    policies: tuple[Difference, ...]
    pools: tuple[Difference, ...]
    interactions: tuple[Difference, ...]
    best: str | None
    rivals: tuple[Difference, ...]
    bargains: tuple[Bargain, ...]
    rates: tuple[RateGap, ...]
    responses: tuple[RateResponse, ...]
    fronts: Mapping[str, tuple[str, ...]]
    joint_front: tuple[str, ...]


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
    values = {
        arm: {r.trial.seed: result_of(r).test[objective.metric] for r in members}
        for arm, members in chosen.items()
    }
    first = {record.trial.arm: record.trial for record in reversed(records)}
    cells = {(policy_level(first[arm]), first[arm].pool): values[arm] for arm in chosen}
    best = min(
        (arm for arm, members in chosen.items() if members),
        key=lambda arm: statistics.fmean(validation_cost(r, objective) for r in chosen[arm]),
        default=None,
    )
    rivals = compared(
        (
            (arm, best, minus(values[arm], values[best]))
            for arm in chosen
            if best is not None and arm != best
        ),
        objective,
    )
    rows = summarize(records, objective)
    return Findings(
        noise=noise(values),
        shares=shares(cells),
        policies=policy_effects(cells, objective),
        pools=pool_effects(cells, objective),
        interactions=interactions(cells, objective),
        best=best,
        rivals=rivals,
        bargains=bargains(rows, best, rivals, objective),
        rates=rate_gaps(chosen),
        responses=rate_responses(chosen),
        fronts=fronts(rows, objective),
        joint_front=joint_front(rows, objective),
    )
