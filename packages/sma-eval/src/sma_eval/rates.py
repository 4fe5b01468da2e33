"""How each policy's activation follows the rate that it was asked for. No I/O."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sma_eval.analysis import Estimate, mean_interval, result_of
from sma_eval.records import TrialRecord
from sma_eval.space import Trial

# An arm whose mean activation is off its target by more than this has missed it.
RATE_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class RateGap:
    """How one arm's activation follows what it was asked for.

    Parameters
    ----------
    arm, policy, pool
        Labels, the policy's without its target.
    target
        What was asked for.
    achieved
        On the test split.
    missed
        Whether the mean is off by more than `RATE_TOLERANCE`.
    """

    arm: str
    policy: str
    pool: str
    target: float
    achieved: Estimate
    missed: bool


@dataclass(frozen=True, kw_only=True)
class RateResponse:
    """How far a policy's activation moves when its target moves.

    Parameters
    ----------
    policy
        Its label, without a target.
    slope
        Change of the achieved rate per change of the target, a least-squares line through the
        means over pools in each seed; 1: it follows, 0: it does what it likes.
    """

    policy: str
    slope: Estimate


def rate_gaps(chosen: Mapping[str, Sequence[TrialRecord]]) -> tuple[RateGap, ...]:
    """Set each arm that aims at a rate beside it.

    Parameters
    ----------
    chosen
        The finished trials that stand for each arm.
    """
    gaps: list[RateGap] = []
    for arm, members in chosen.items():
        if not members or (target := asked(members[0].trial)) is None:
            continue
        achieved = mean_interval([result_of(r).test["activation_rate"] for r in members])
        trial = members[0].trial
        gaps.append(
            RateGap(
                arm=arm,
                policy=_family(trial),
                pool=trial.pool,
                target=target,
                achieved=achieved,
                missed=abs(achieved.mean - target) > RATE_TOLERANCE,
            )
        )
    return tuple(gaps)


def rate_responses(chosen: Mapping[str, Sequence[TrialRecord]]) -> tuple[RateResponse, ...]:
    """Measure how activation answers to the target, for policies that were given several.

    A seed that lacks a target or a pool of the policy is left out.
    """
    achieved: dict[str, dict[int, dict[tuple[float, str], float]]] = {}
    wanted: dict[str, set[tuple[float, str]]] = {}
    for members in chosen.values():
        for record in members:
            if (target := asked(record.trial)) is not None:
                policy, key = _family(record.trial), (target, record.trial.pool)
                wanted.setdefault(policy, set()).add(key)
                of_seed = achieved.setdefault(policy, {}).setdefault(record.trial.seed, {})
                of_seed[key] = result_of(record).test["activation_rate"]
    responses: list[RateResponse] = []
    for policy, seeds in achieved.items():
        targets = sorted({target for target, _ in wanted[policy]})
        slopes = [
            statistics.linear_regression(
                targets,
                [statistics.fmean(own[key] for key in own if key[0] == t) for t in targets],
            ).slope
            for own in seeds.values()
            if len(targets) > 1 and own.keys() == wanted[policy]
        ]
        if slopes:
            responses.append(RateResponse(policy=policy, slope=mean_interval(slopes)))
    return tuple(responses)


def asked(trial: Trial) -> float | None:
    """Return the rate that a trial was asked for: by training, or by its policy itself."""
    if trial.target_rate is not None:
        return trial.target_rate
    return trial.model["policy"].get("rate")


def _family(trial: Trial) -> str:
    """Name the policy for all its rates: one that holds a rate itself has it in its label."""
    kind, _, fields = trial.policy.partition("(")
    kept = [f for f in fields.removesuffix(")").split(", ") if f and not f.startswith("rate=")]
    return f"{kind}({', '.join(kept)})" if kept else kind
