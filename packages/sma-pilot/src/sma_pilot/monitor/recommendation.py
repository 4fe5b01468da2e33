"""From figures of then and now to findings and a recommendation: pure functions, no file, no clock.

A finding raises an alarm by the size of its effect: the change, or the loss, is larger than the
plan's limit. Where the figure has an interval, that interval must rule out "no change" as well, so
that a short look does not cry wolf; a p-value alone raises none, however many rows there are.
Nothing is proven by silence: what could not be measured is neither fine nor an alarm, and is told.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.behaviour_checks import (
    check_activation,
    check_collapse,
    check_drift,
    check_latency,
    check_submodules,
    check_unscored,
)
from sma_pilot.monitor.finding import Finding, LookFigures
from sma_pilot.monitor.quality_checks import (
    check_calibration,
    check_false_alarms,
    check_loss,
    check_own_quality,
)
from sma_pilot.plan import MonitorPlan, Plan

Recommendation = Literal["keep", "re-pilot", "fall back"]


def find(now: LookFigures, then: Mapping[str, Kpi], plan: Plan) -> tuple[Finding, ...]:
    """Hold what a look measured against the plan and against the verdict.

    Parameters
    ----------
    now : LookFigures
    then : mapping name -> Kpi
        Of the judged rows: those of the signed result, and `COLLAPSED`.
    plan : Plan
        As its last stage reads it.
    """
    limits = plan.monitor or MonitorPlan()
    calibration = (check_calibration(now, then, limits),) if plan.task.kind == "alarm" else ()
    return (
        check_loss(now, then, plan),
        check_own_quality(now, then, plan, limits),
        check_false_alarms(now, then, plan, limits),
        *calibration,
        check_unscored(now, limits),
        check_drift(now, limits),
        check_activation(now, then, limits),
        check_collapse(now, then, limits),
        check_submodules(now, then, limits),
        check_latency(now, then, plan),
    )


def recommend(findings: Sequence[Finding]) -> tuple[Recommendation, str]:
    """Return the gravest advice of the findings, and why, in a sentence or two."""
    alarms = [one for one in findings if one.status == "alarm"]
    count = f"{len(alarms)} alarm{'' if len(alarms) == 1 else 's'}"
    gravest = next((one for one in alarms if one.advice == "fall back"), None)
    if gravest is not None:
        return "fall back", f"Go back to the incumbent ({count}). {gravest.text}"
    if alarms:
        return "re-pilot", (
            f"What the verdict rests on has changed ({count}): pilot again on newer rows. "
            f"{alarms[0].text}"
        )
    settled = any(one.status == "ok" and one.name.startswith("quality/loss_") for one in findings)
    return "keep", "No change is over a limit of the plan." + (
        "" if settled else " What the candidate loses against the incumbent is not known, though."
    )
