"""From measurements and a plan to a verdict with reasons (docs/verdict.md)."""

from sma_pilot.judge.fallbacks import fallbacks_of
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.footprint_gate import (
    inform_routing,
    inform_score_difference,
    inform_throughput,
    judge_memory,
)
from sma_pilot.judge.guard import inform_guard
from sma_pilot.judge.latency import MEDIAN, measure_latency
from sma_pilot.judge.latency_gate import judge_latency
from sma_pilot.judge.load import inform_energy, inform_harness, inform_load
from sma_pilot.judge.measurements import (
    INCUMBENT_AGAIN,
    JUDGED,
    VALIDATION,
    AlignedSlice,
    Measurements,
)
from sma_pilot.judge.money import inform_cost
from sma_pilot.judge.quality import measure_quality
from sma_pilot.judge.quality_gate import judge_quality, score_noise
from sma_pilot.judge.result import Kpi, Result
from sma_pilot.judge.safety import judge_safety
from sma_pilot.judge.third_arm import remark_third_arm
from sma_pilot.plan import Plan


def judge(measurements: Measurements, plan: Plan) -> Result:
    """Hold the measurements against the plan.

    The verdict is no-go when any gate fails, go only when every gate passes, else inconclusive.
    The gates are the loss of quality, rows that the candidate left without a score, the latency
    ratio and the memory ratio, and for a look of a stage its safety gates. The same input gives
    the same result: all resampling is seeded by the plan.

    Raises
    ------
    RunError
        When the arms were not replayed on the same rows.
    """
    validation = AlignedSlice.align(measurements, VALIDATION)
    judged = AlignedSlice.align(measurements, JUDGED)
    findings = Findings()
    quality = measure_quality(validation, judged, plan)
    more_data = judge_quality(quality, plan, findings)
    latency = measure_latency(
        measurements.latency,
        tuple(dict.fromkeys((MEDIAN, plan.efficiency.latency_percentile))),
        resamples=plan.quality.resamples,
        alpha=plan.quality.alpha,
        seed=plan.seed,
    )
    noise = judge_latency(latency, plan, findings)
    judge_memory(measurements, plan, findings)
    judge_safety(measurements, judged, plan, findings)
    inform_throughput(measurements, plan, findings)
    inform_load(measurements, plan, findings)
    inform_harness(measurements, plan, latency, findings)
    inform_energy(measurements, plan, findings)
    fallbacks = fallbacks_of(measurements.guard, latency, plan)
    inform_cost(measurements, latency, plan, findings, fallbacks)
    inform_routing(measurements, findings)
    inform_guard(measurements, fallbacks, plan, findings)
    inform_score_difference(measurements, plan, findings)
    noise["score_rows_different"] = _same_scores_twice(judged, findings)
    remark_third_arm(measurements, judged, quality, latency, plan, findings)
    return Result(
        verdict=findings.verdict,
        reasons=(*findings.gates, *findings.remarks),
        kpis=tuple(findings.kpis),
        plan={"name": plan.name, "digest": plan.digest},
        more_data=more_data,
        dataset=measurements.dataset,
        environment=measurements.environment,
        noise=noise,
    )


def _same_scores_twice(judged: AlignedSlice, findings: Findings) -> int | None:
    rows = score_noise(judged, INCUMBENT_AGAIN)
    name = "noise/score_rows_different"
    findings.inform(
        Kpi(
            name=name,
            value=rows,
            unit="rows",
            direction="lower",
            note="Judged rows that the incumbent, run twice, scored differently.",
        )
    )
    if rows:
        findings.remark(
            name,
            f"The incumbent, run twice, scored {rows} of {judged.rows} judged rows differently: "
            "scoring is not deterministic, so a small loss may be chance.",
        )
    return rows
