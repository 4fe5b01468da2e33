"""From what a look replayed to its figures, under the names that the judge gives them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sma_pilot.guard.drift import DriftReference
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.footprint_gate import inform_routing
from sma_pilot.judge.latency import MEDIAN, measure_latency
from sma_pilot.judge.latency_gate import judge_latency
from sma_pilot.judge.measurements import (
    CANDIDATE,
    INCUMBENT,
    JUDGED,
    OFFLINE,
    VALIDATION,
    AlignedSlice,
    Leg,
    Measurements,
)
from sma_pilot.judge.quality import Quality, measure_quality
from sma_pilot.judge.quality_gate import MINIMUM_BLOCKS, judge_quality
from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.basis import Basis
from sma_pilot.monitor.finding import COLLAPSED, UNSCORED, LookFigures
from sma_pilot.monitor.routing import collapsed_share
from sma_pilot.monitor.rows import inputs_of
from sma_pilot.plan import MonitorPlan, Plan
from sma_pilot.replay.measurements_io import read_latency, read_scores
from sma_pilot.replay.timeline import Timeline

ARMS = (INCUMBENT, CANDIDATE)


def measure(
    basis: Basis,
    reference: DriftReference,
    timeline: Timeline,
    folder: Path,
    legs: Mapping[str, Mapping[str, Any]],
) -> LookFigures:
    """Measure what lies in a look's folder.

    Parameters
    ----------
    basis : Basis
        Its validation rows set the thresholds, as they did for the verdict.
    reference : DriftReference
        Of the judged rows.
    timeline : Timeline
        The look's rows.
    folder : Path
        Scores, routing decisions and service times.
    legs : mapping arm -> figures of the offline leg
    """
    plan = basis.plan
    limits = plan.monitor or MonitorPlan()
    validation = {arm: basis.measurements.scores[VALIDATION][arm] for arm in ARMS}
    measured = Measurements(
        entities=timeline.entities,
        scores={
            VALIDATION: validation,
            JUDGED: {arm: read_scores(folder, arm, JUDGED) for arm in ARMS},
        },
        latency={arm: read_latency(folder, arm) for arm in ARMS} if limits.latency_events else {},
        legs={
            f"{CANDIDATE}/{OFFLINE}": Leg(
                activation_rate=legs[CANDIDATE]["activation_rate"],
                submodule_rates=legs[CANDIDATE]["submodule_rates"],
            )
        },
    )
    rows = AlignedSlice.align(measured, JUDGED)
    quality = measure_quality(AlignedSlice.align(measured, VALIDATION), rows, plan)
    findings = Findings()
    judge_quality(quality, plan, findings)
    if measured.latency:
        latency = measure_latency(
            measured.latency,
            tuple(dict.fromkeys((MEDIAN, plan.efficiency.latency_percentile))),
            resamples=plan.quality.resamples,
            alpha=plan.quality.alpha,
            seed=plan.seed,
        )
        judge_latency(latency, plan, findings)
    inform_routing(measured, findings)
    share = collapsed_share([folder], limits)
    findings.inform(Kpi(name=COLLAPSED, arm=CANDIDATE, value=share, unit=""))
    findings.inform(_unscored(rows))
    return LookFigures(
        # Statuses are those of a verdict, which a look is not.
        kpis={
            kpi.name: replace(kpi, status="not_measured" if kpi.value is None else "info")
            for kpi in findings.kpis
        },
        drift=dict(
            zip(reference.channels, reference.indices(inputs_of(timeline)).tolist(), strict=True)
        ),
        rows=rows.rows,
        labelled_rows=int((rows.label >= 0).sum()),
        events=quality.events,
        too_few=_too_few(quality, plan),
    )


def _unscored(rows: AlignedSlice) -> Kpi:
    scored = ~np.isnan(rows.scores[INCUMBENT])
    missing = scored & np.isnan(rows.scores[CANDIDATE])
    share = float(missing.sum() / scored.sum()) if scored.any() else None
    return Kpi(name=UNSCORED, value=share, unit="", direction="lower")


def _too_few(quality: Quality, plan: Plan) -> str:
    """Say why no bound of the look can be trusted, by the rules of the judge."""
    if quality.events < plan.quality.minimum_events:
        return f"{quality.events} events, the plan asks for {plan.quality.minimum_events}"
    if quality.blocks < MINIMUM_BLOCKS:
        return f"{quality.blocks} independent stretches of time, {MINIMUM_BLOCKS} are needed"
    return ""
