"""Which arms are worth their cost: fronts of the objective against each cost, and all at once.

By means over seeds, so neighbours on a front may be the same within chance. No I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sma_eval.analysis import ArmSummary
from sma_eval.effects import Difference
from sma_eval.study import Objective

COSTS = ("flops_per_step", "latency_seconds", "state_bytes")
"""Fields of a table row that a front is drawn against: less is better."""


@dataclass(frozen=True, kw_only=True)
class Bargain:
    """The cheapest arm that the test split cannot tell from the best one.

    Parameters
    ----------
    cost
        One of `COSTS`.
    arm
        Its label.
    share
        Its cost as a share of the best arm's.
    worse_by
        How much worse than the best arm it may still be: the far end of the interval of their
        difference, at least 0.
    """

    cost: str
    arm: str
    share: float
    worse_by: float


def fronts(rows: Sequence[ArmSummary], objective: Objective) -> dict[str, tuple[str, ...]]:
    """Return, for each measured cost, the arms that no other beats in it and the objective.

    An arm is beaten by one that is at least as good in both and better in one. Cheapest first.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in COSTS:
        if points := _points(rows, objective, (name,)):
            found[name] = _front(points)
    return found


def joint_front(rows: Sequence[ArmSummary], objective: Objective) -> tuple[str, ...]:
    """Return the arms that no other beats in the objective and every measured cost together."""
    measured = [n for n in COSTS if any(getattr(row, n) is not None for row in rows)]
    return _front(_points(rows, objective, measured))


def bargains(
    rows: Sequence[ArmSummary],
    best: str | None,
    rivals: Sequence[Difference],
    objective: Objective,
) -> tuple[Bargain, ...]:
    """For each cost, find the cheapest arm that is not told from the best, where it is cheaper.

    An arm that may lose more than all arms lie apart is passed over: of it nothing is known.

    Parameters
    ----------
    rows
        The table.
    best
        Label of the best arm on validation.
    rivals
        Every other arm against it.
    objective
        The metric, and which way is better.
    """
    of = {row.arm: row for row in rows}
    means = [row.objective.mean for row in rows if row.objective is not None]
    alike = [
        (rival.what, worse_by)
        for rival in rivals
        if rival.verdict == "not distinguishable"
        and (worse_by := _worst(rival, objective)) <= max(means) - min(means)
    ]
    found: list[Bargain] = []
    for name in COSTS:
        limit = getattr(of[best], name) if best is not None else None
        priced = [
            (cost, arm, worse_by)
            for arm, worse_by in alike
            if (cost := getattr(of[arm], name)) is not None
        ]
        if not limit or not priced:
            continue
        cost, arm, worse_by = min(priced)
        if cost < limit:
            found.append(Bargain(cost=name, arm=arm, share=cost / limit, worse_by=worse_by))
    return tuple(found)


def _worst(rival: Difference, objective: Objective) -> float:
    end = rival.estimate.low if objective.mode == "max" else rival.estimate.high
    return abs(end or 0.0)


def _points(
    rows: Sequence[ArmSummary], objective: Objective, costs: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Coordinates of each arm that has all of them: costs, then the objective; less is better."""
    sign = 1.0 if objective.mode == "min" else -1.0
    points: dict[str, tuple[float, ...]] = {}
    for row in rows:
        measured = [getattr(row, name) for name in costs]
        if row.objective is not None and None not in measured:
            points[row.arm] = (*measured, sign * row.objective.mean)
    return points


def _front(points: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    kept = [arm for arm, p in points.items() if not any(beats(q, p) for q in points.values())]
    return tuple(sorted(kept, key=lambda arm: (points[arm], arm)))
