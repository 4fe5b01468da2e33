"""The legs of a replay: one arm in one scenario each, in the order they run, and their figures."""

import random
from dataclasses import dataclass
from typing import Any

from sma_pilot.plan import Plan
from sma_pilot.replay.further import further_legs

OFFLINE = "offline"
SINGLE_STREAM = "single_stream"
GUARDED = "guarded"
_AGAIN = "_again"


@dataclass(frozen=True)
class LegName:
    """One arm in one scenario; single-stream comes in several passes."""

    arm: str
    scenario: str
    visit: int | None = None

    def __str__(self) -> str:
        name = f"{self.arm}/{self.scenario}"
        return name if self.visit is None else f"{name}/{self.visit}"

    @property
    def role(self) -> str:
        """The arm of the plan that runs under this name."""
        return self.arm.removesuffix(_AGAIN)

    @property
    def file(self) -> str:
        """Name of the file that says the leg is finished."""
        return str(self).replace("/", ".") + ".json"


def legs_of(plan: Plan) -> list[LegName]:
    """Return the legs in the order they run.

    All offline legs come first, since the streams are compared with their scores. Arms take turns
    in a new random order in every pass, so that a machine that warms up or slows down favours none.
    A shadow stage ends with the candidate beside the incumbent, at the log's pace. The incumbent
    runs twice; if it is but recorded, the candidate does.
    """
    run = [role for role in plan.named_arms() if not plan.is_recorded(role)]
    twice = next((role for role in ("incumbent", "candidate") if role in run), None)
    arms = [*plan.named_arms(), *([] if twice is None else [twice + _AGAIN])]
    shuffled = random.Random(f"{plan.seed}/order")
    legs = [LegName(arm, OFFLINE) for arm in shuffled.sample(arms, len(arms))]
    for visit in range(plan.replay.passes):
        order = shuffled.sample(arms, len(arms))
        legs += [LegName(arm, SINGLE_STREAM, visit) for arm in order]
    legs += [LegName(arm, scenario) for arm, scenario in further_legs(plan)]
    return legs


def by_scenario(measured: dict[LegName, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures by ``<arm>/<scenario>``, the passes of a scenario brought together."""
    passes: dict[str, list[dict[str, Any]]] = {}
    merged: dict[str, dict[str, Any]] = {}
    for leg, figures in measured.items():
        name = f"{leg.arm}/{leg.scenario}"
        if leg.visit is None:
            merged[name] = figures
        else:
            passes.setdefault(name, []).append(figures)
    return merged | {name: _over_passes(legs) for name, legs in passes.items()}


def _over_passes(passes: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sum(leg["rows"] for leg in passes)
    seconds = sum(leg["seconds"] for leg in passes)
    routed = [leg for leg in passes if leg["activation_rate"] is not None]
    differences = [leg["score_difference"] for leg in passes if leg["score_difference"] is not None]
    # Memory is that of the pass that took most over its own baseline.
    most = max(
        passes, key=lambda leg: (leg["peak_rss_bytes"] or 0) - (leg["baseline_rss_bytes"] or 0)
    )
    return {
        **most,
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds if seconds > 0 else None,
        "activation_rate": sum(leg["activation_rate"] * leg["rows"] for leg in routed) / rows
        if routed
        else None,
        "score_difference": max(differences, default=None),
        "passes": passes,
    }
