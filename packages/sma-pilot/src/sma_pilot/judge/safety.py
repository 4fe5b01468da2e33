"""The safety gates of a stage: each stops it at once, whatever the other gates say.

Their names begin with ``safety/``. One that was not breached is a pass: it proves nothing about
the candidate, it only did not stop it. The other gates are there for proof.
"""

from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.events import nanoseconds
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.guard_record import GuardRecord
from sma_pilot.judge.measurements import (
    CANDIDATE,
    INCUMBENT,
    PACED,
    VALIDATION,
    AlignedSlice,
    Measurements,
)
from sma_pilot.judge.result import Kpi
from sma_pilot.judge.scene import Scene, set_thresholds
from sma_pilot.judge.sequential import evidence_of_loss
from sma_pilot.plan import Plan, StagePlan, format_duration

SAFETY = "safety/"
BLOCK_OF_MERGES = 10


def judge_safety(
    measurements: Measurements, judged: AlignedSlice, plan: Plan, findings: Findings
) -> None:
    """Add the safety gates of the stage that `plan` is the reading of; none without a stage.

    The watch over losses always goes by events caught, at the limit of the plan where the headline
    is event recall; it has no gate where it is not. Its level is one alpha for the whole stage.
    """
    if len(plan.stages) != 1:
        return
    (stage,) = plan.stages
    if plan.quality.headline == "event_recall":
        _losses(measurements, judged, stage, plan, findings)
    _unscored(judged, stage, findings)
    if stage.kind == "shadow":
        _late(measurements, stage, findings)
    if stage.fallback_limit is not None:
        _share_gate(
            "fallback_share",
            _fallback_share(measurements.guard),
            stage.fallback_limit,
            "The share of rows that the guard's fallback served",
            findings,
        )


def block_of(stage: StagePlan, plan: Plan) -> timedelta:
    """Return the time of one block of the watch: long enough that one incident is within one."""
    return stage.block or BLOCK_OF_MERGES * (plan.quality.alarm_merge or plan.log.period)


def block_means(scene: Scene, loss: NDArray[np.float64], block_ns: int) -> NDArray[np.float64]:
    """Return the mean paired loss of each block of time that holds events, in order of time."""
    block = scene.events.start_time // block_ns
    _, place = np.unique(block, return_inverse=True)
    return np.bincount(place, weights=loss) / np.bincount(place)


def _losses(
    measurements: Measurements,
    judged: AlignedSlice,
    stage: StagePlan,
    plan: Plan,
    findings: Findings,
) -> None:
    limit, block = plan.quality.loss_limit, block_of(stage, plan)
    threshold = 1 / stage.watch_alpha
    thresholds = set_thresholds(AlignedSlice.align(measurements, VALIDATION), plan)
    scene = Scene.of(judged, plan)
    caught = [scene.score(arm, thresholds.get(arm)).caught for arm in (INCUMBENT, CANDIDATE)]
    value, blocks = 1.0, 0
    if scene.events.count and caught[0] is not None and caught[1] is not None:
        loss = caught[0].astype(np.float64) - caught[1]
        evidence = evidence_of_loss(block_means(scene, loss, nanoseconds(block)), limit)
        value, blocks = max(1.0, float(evidence.max())), evidence.size
    breached = value >= threshold
    findings.gate(
        Kpi(
            name=f"{SAFETY}loss_evidence",
            value=value,
            unit="",
            threshold=threshold,
            direction="lower",
            status="fail" if breached else "pass",
            note=f"Largest evidence so far that the loss of event recall exceeds {limit:g}, over "
            f"{blocks} blocks of {format_duration(block)} with events; 1 is none.",
        ),
        f"Watch over losses: the evidence that event recall is lost beyond {limit:g} reached "
        f"{value:.3g} in {blocks} blocks with events, "
        + (
            f"at or over {threshold:g}: the stage is stopped."
            if breached
            else f"under {threshold:g}."
        ),
    )


def _unscored(judged: AlignedSlice, stage: StagePlan, findings: Findings) -> None:
    scored = ~np.isnan(judged.scores[INCUMBENT])
    missing = scored & np.isnan(judged.scores[CANDIDATE])
    share = float(missing.sum() / scored.sum()) if scored.any() else None
    _share_gate(
        "unscored_share",
        share,
        stage.unscored_limit,
        "The share of rows that the incumbent scored and the candidate did not",
        findings,
    )


def _late(measurements: Measurements, stage: StagePlan, findings: Findings) -> None:
    paced = measurements.leg(CANDIDATE, PACED)
    for arm, value in ((CANDIDATE, paced.response_p95_ms), (INCUMBENT, paced.served_p95_ms)):
        findings.inform(
            Kpi(
                name=f"shadow/{arm}_response_p95_ms",
                arm=arm,
                value=value,
                unit="ms",
                direction="lower",
                note=f"From when an event was due to the answer, at {stage.speed:g} times the "
                "recorded pace, both arms on one core; the largest of the looks.",
            )
        )
    if stage.deadline is not None:
        _share_gate(
            "late_share",
            paced.late_share,
            stage.late_limit,
            f"The share of events that the candidate answered later than "
            f"{format_duration(stage.deadline)} after they were due",
            findings,
        )


def _fallback_share(guard: GuardRecord | None) -> float | None:
    """Share of judged rows that the fallback served; None when no guarded leg ran."""
    if guard is None or not guard.judged.rows:
        return None
    return sum(guard.judged.fallback_rows.values()) / guard.judged.rows


def _share_gate(
    name: str, share: float | None, limit: float, what: str, findings: Findings
) -> None:
    breached = share is not None and share > limit
    status = "inconclusive" if share is None else "fail" if breached else "pass"
    words = {
        "inconclusive": "could not be measured",
        "fail": f"is {share or 0:.3g}, over the limit of {limit:g}: the stage is stopped",
        "pass": f"is {share or 0:.3g}, within the limit of {limit:g}",
    }[status]
    findings.gate(
        Kpi(
            name=f"{SAFETY}{name}",
            value=share,
            unit="",
            threshold=limit,
            direction="lower",
            status=status,
        ),
        f"{what} {words}.",
    )
