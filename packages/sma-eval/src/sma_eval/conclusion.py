"""The findings of a study in plain words: what can be told apart, and what cannot."""

from collections.abc import Sequence

from sma_eval.analysis import Estimate
from sma_eval.findings import Difference, Findings
from sma_eval.study import Objective

# An arm whose mean activation is off its target by more than this is named.
RATE_TOLERANCE = 0.02
_COST_NAMES = {
    "flops_per_step": "FLOPs of a step",
    "latency_seconds": "latency of a streaming step",
    "state_bytes": "memory of a stream",
}


def conclude(found: Findings, objective: Objective) -> list[str]:
    """Say what a study found, one sentence or two a line.

    Parameters
    ----------
    found
        Its findings.
    objective
        The metric that they are of.

    Returns
    -------
    list of str
        In the order to read them; one line alone when nothing has finished.
    """
    if found.best is None:
        return ["No trial has finished yet, so there is nothing to conclude."]
    return [
        _noise(found, objective),
        _best(found),
        *_factor("Policies", found.policies),
        *_factor("Pools", found.pools),
        *_interactions(found.interactions),
        *_rates(found),
        *_fronts(found),
    ]


def _noise(found: Findings, objective: Objective) -> str:
    if found.seed_deviation is None:
        return "One seed an arm: how much chance decides is unknown, and no arm can be told apart."
    return (
        f"Chance alone: the same arm differs between seeds by {found.seed_deviation:.4f} "
        f"{objective.metric} (standard deviation, pooled over arms)."
    )


def _best(found: Findings) -> str:
    rivals = found.rivals
    if not rivals:
        return f"The only arm that finished is {found.best}."
    told = [rival.what for rival in rivals if rival.verdict in ("better", "worse")]
    alike = [rival.what for rival in rivals if rival.verdict == "not distinguishable"]
    text = f"Best on validation is {found.best}."
    if alike:
        text += f" Not distinguishable from it on the test split: {_listed(alike)}."
    elif len(told) == len(rivals):
        text += " On the test split every other arm can be told from it."
    else:
        text += " With these seeds the other arms cannot be compared with it."
    return text


def _factor(name: str, differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    parts = []
    for verdict in ("better", "worse", "not distinguishable", "too few seeds"):
        members = [
            f"{d.what} ({_interval(d.estimate)})" for d in differences if d.verdict == verdict
        ]
        if members:
            parts.append(f"{verdict}: {_listed(members)}")
    return [f"{name}, against {differences[0].against}: {'; '.join(parts)}."]


def _interactions(differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    told = [d for d in differences if d.verdict in ("better", "worse")]
    if not told:
        return [
            f"Policy and pool: none of {len(differences)} interactions is distinguishable from 0: "
            "the two factors may add up."
        ]
    members = [f"{d.what} ({_interval(d.estimate)})" for d in told]
    return [
        f"Policy and pool interact in {len(told)} of {len(differences)} combinations, against "
        f"{differences[0].against}: {_listed(members)}."
    ]


def _rates(found: Findings) -> list[str]:
    lines = []
    for policy in dict.fromkeys(gap.policy for gap in found.rates):
        gaps = sorted(
            (gap for gap in found.rates if gap.policy == policy), key=lambda gap: gap.target
        )
        pairs = [f"{gap.target:g} -> {gap.achieved.mean:.3f}" for gap in gaps]
        off = sum(abs(gap.achieved.mean - gap.target) > RATE_TOLERANCE for gap in gaps)
        verdict = (
            f"each within {RATE_TOLERANCE:g}" if not off else f"{off} of {len(gaps)} missed it"
        )
        lines.append(f"Rate asked and reached, {policy}: {', '.join(pairs)}; {verdict}.")
    return lines


def _fronts(found: Findings) -> list[str]:
    return [
        f"Not beaten in both the objective and {_COST_NAMES[cost]}, by means: {_listed(arms)}."
        for cost, arms in found.fronts.items()
    ]


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.4f}"
    return f"{estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
