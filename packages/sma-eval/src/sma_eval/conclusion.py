"""The findings of a study in plain words: what can be told apart, and what cannot."""

from collections.abc import Sequence

from sma_eval.analysis import CONFIDENCE, Estimate
from sma_eval.effects import Difference
from sma_eval.findings import Findings
from sma_eval.rates import RATE_TOLERANCE
from sma_eval.study import Objective

COST_NAMES = {
    "flops_per_step": "FLOPs of a step",
    "latency_seconds": "latency of a streaming step",
    "state_bytes": "memory of a stream",
}
_ALPHA = 1.0 - CONFIDENCE
# Arms whose own spread is this many times the median of all make the pooled one a poor summary.
_UNEVEN = 4.0


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
        *_noise(found, objective),
        _best(found),
        *_bargains(found, objective),
        *_factor("Policies", found.policies),
        *_factor("Pools", found.pools),
        *_interactions(found.interactions),
        *_rates(found),
        *_fronts(found),
    ]


def _noise(found: Findings, objective: Objective) -> list[str]:
    chance = found.noise
    if chance is None:
        return [
            "One seed an arm: how much chance decides is unknown, and no arm can be told apart."
        ]
    lines = [
        f"Chance alone: the same arm differs between seeds by {chance.deviation:.4f} "
        f"[{chance.low:.4f}, {chance.high:.4f}] {objective.metric} (standard deviation, pooled "
        "over arms)."
    ]
    spreads = sorted(chance.arms.values())
    widest = max(chance.arms, key=lambda arm: chance.arms[arm])
    if chance.arms[widest] > _UNEVEN * spreads[len(spreads) // 2]:
        lines[0] += (
            f" The arms are not alike in that: {widest} differs by {chance.arms[widest]:.4f}, half "
            f"of them by less than {spreads[len(spreads) // 2]:.4f}."
        )
    if (parts := found.shares) is not None:
        named = [
            f"{share:.0%} to {name}"
            for name, share in (
                ("the policy", parts.policy),
                ("the pool", parts.pool),
                ("the two together", parts.interaction),
                ("the seed", parts.seed),
            )
            if share > 0.0 or name == "the seed"
        ]
        lines.append(f"Of the variation between all trials belong {_listed(named)}.")
    return lines


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


def _bargains(found: Findings, objective: Objective) -> list[str]:
    return [
        f"Cheapest of these by {COST_NAMES[bargain.cost]}: {bargain.arm}, at {bargain.share:.0%} "
        "of the best arm's; it may still be worse by up to "
        f"{bargain.worse_by:.4f} {objective.metric}."
        for bargain in found.bargains
    ]


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
    text = f"{name}, against {differences[0].against}: {'; '.join(parts)}."
    return [text + _corrected(differences)]


def _interactions(differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    told = _told(differences)
    if not told:
        return [
            f"Policy and pool: none of {len(differences)} interactions is distinguishable from 0: "
            "the two factors may add up."
        ]
    members = [f"{d.what} ({_interval(d.estimate)})" for d in told]
    return [
        f"Policy and pool interact in {len(told)} of {len(differences)} combinations, against "
        f"{differences[0].against}: {_listed(members)}.{_corrected(differences)}"
    ]


def _corrected(differences: Sequence[Difference]) -> str:
    """Say what is left of the differences that were told when all comparisons are counted."""
    told = _told(differences)
    if not told or len(differences) < 2:
        return ""
    kept = [d.what for d in told if d.adjusted_p is not None and d.adjusted_p < _ALPHA]
    rest = "all" if len(kept) == len(told) else _listed(kept) if kept else "none"
    return f" After Holm's correction for {len(differences)} comparisons, still told: {rest}."


def _told(differences: Sequence[Difference]) -> list[Difference]:
    return [d for d in differences if d.verdict in ("better", "worse")]


def _rates(found: Findings) -> list[str]:
    lines = []
    slopes = {response.policy: response.slope.mean for response in found.responses}
    for policy in dict.fromkeys(gap.policy for gap in found.rates):
        gaps = [gap for gap in found.rates if gap.policy == policy]
        pairs = [
            f"{target:g} -> {_range([gap.achieved.mean for gap in gaps if gap.target == target])}"
            for target in sorted({gap.target for gap in gaps})
        ]
        off = sum(gap.missed for gap in gaps)
        verdict = (
            f"each within {RATE_TOLERANCE:g}" if not off else f"{off} of {len(gaps)} missed it"
        )
        if policy in slopes:
            verdict += f"; it moves by {slopes[policy]:.2f} when the target moves by 1"
        lines.append(f"Rate asked and reached, {policy}: {', '.join(pairs)}; {verdict}.")
    return lines


def _range(values: Sequence[float]) -> str:
    """Say the values of one target over the pools."""
    ends = [f"{end:.3f}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def _fronts(found: Findings) -> list[str]:
    lines = [
        f"Not beaten in both the objective and {COST_NAMES[cost]}, by means: {_listed(arms)}."
        for cost, arms in found.fronts.items()
    ]
    if len(found.fronts) > 1:
        lines.append(
            "Not beaten in the objective and all of these costs together: "
            f"{_listed(found.joint_front)}."
        )
    return lines


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.4f}"
    return f"{estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
