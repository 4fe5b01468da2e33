"""Memory, throughput and routing in words and KPIs; of these only memory is a gate."""

from sma_pilot.judge.findings import Findings
from sma_pilot.judge.footprint import memory_of
from sma_pilot.judge.measurements import (
    BASELINE,
    CANDIDATE,
    INCUMBENT,
    OFFLINE,
    SINGLE_STREAM,
    Measurements,
)
from sma_pilot.judge.result import Kpi
from sma_pilot.plan import Plan

ARMS = (INCUMBENT, CANDIDATE, BASELINE)
# A sub-module that runs in fewer steps than the first share, or in more than the second, does not
# depend on its input any more.
NEVER, ALWAYS = 0.001, 0.999
# Offline and single-stream scores that differ by more than this, relatively, are not one function.
SCORE_DIFFERENCE = 1e-3


def judge_memory(measurements: Measurements, plan: Plan, findings: Findings) -> None:
    """Add the gate `memory/ratio`: weights and one entity's state. Exact, so with no interval."""
    memory = {arm: memory_of(measurements, arm) for arm in ARMS}
    limit = plan.efficiency.memory_ratio_limit
    incumbent, candidate = memory[INCUMBENT], memory[CANDIDATE]
    ratio = fleet = None
    entities = len(measurements.entities)
    if incumbent is None or candidate is None or incumbent.total() == 0:
        status = "inconclusive"
        text = "Memory was not measured for both arms: weights or streaming state are missing."
    else:
        ratio = candidate.total() / incumbent.total()
        fleet = candidate.total(entities) / incumbent.total(entities)
        status = "pass" if ratio <= limit else "fail"
        text = (
            f"Memory (weights and one entity's state): candidate {candidate.total():,} bytes, "
            f"incumbent {incumbent.total():,}, a ratio of {ratio:.3f}, "
            f"{'within' if status == 'pass' else 'over'} the limit of {limit:g}."
        )
    findings.gate(
        Kpi(
            name="memory/ratio",
            value=ratio,
            unit="ratio",
            threshold=limit,
            direction="lower",
            status=status,
            note="Bytes of weights and of one entity's state: counted, not sampled.",
        ),
        text,
    )
    findings.inform(
        Kpi(
            name="memory/fleet_ratio",
            value=fleet,
            unit="ratio",
            direction="lower",
            note=f"Weights once and the state of all {entities} entities of the log.",
        )
    )
    for arm in ARMS:
        held = memory[arm]
        if arm == BASELINE and plan.arms.baseline is None:
            continue
        leg = measurements.leg(arm, OFFLINE)
        figures = {
            "weight_bytes": None if held is None else held.weight_bytes,
            "state_bytes_per_entity": None if held is None else held.state_bytes_per_entity,
            "peak_rss_bytes": leg.peak_rss_bytes,
        }
        if plan.replay.device == "cuda":
            figures["peak_cuda_bytes"] = leg.peak_cuda_bytes
        for name, value in figures.items():
            findings.inform(
                Kpi(
                    name=f"memory/{arm}_{name}",
                    arm=arm,
                    value=value,
                    unit="bytes",
                    direction="lower",
                )
            )


def inform_throughput(measurements: Measurements, plan: Plan, findings: Findings) -> None:
    """Add rows per second of the offline scenario, and their ratio."""
    rates = {arm: measurements.leg(arm, OFFLINE).rows_per_second for arm in plan.named_arms()}
    for arm, rate in rates.items():
        findings.inform(
            Kpi(
                name=f"throughput/{arm}_rows_per_second",
                arm=arm,
                value=rate,
                unit="rows/s",
                direction="higher",
            )
        )
    incumbent, candidate = rates[INCUMBENT], rates[CANDIDATE]
    findings.inform(
        Kpi(
            name="throughput/ratio",
            value=candidate / incumbent if incumbent and candidate is not None else None,
            unit="ratio",
            direction="higher",
            note="Candidate over incumbent, offline; one run each, so without an interval.",
        )
    )


def inform_routing(measurements: Measurements, findings: Findings) -> None:
    """Add how often the candidate's sub-modules run, and say which do not route any more."""
    legs = [measurements.leg(CANDIDATE, scenario) for scenario in (OFFLINE, SINGLE_STREAM)]
    rate = next((leg.activation_rate for leg in legs if leg.activation_rate is not None), None)
    if rate is None:
        return
    name = "routing/activation_rate"
    findings.inform(Kpi(name=name, arm=CANDIDATE, value=rate, unit=""))
    rates = next((leg.submodule_rates for leg in legs if leg.submodule_rates), {})
    for submodule, own in rates.items():
        findings.inform(Kpi(name=f"routing/rate/{submodule}", arm=CANDIDATE, value=own, unit=""))
    for which, submodules in (
        ("never", [submodule for submodule, own in rates.items() if own < NEVER]),
        ("always", [submodule for submodule, own in rates.items() if own > ALWAYS]),
    ):
        if submodules or (not rates and (rate < NEVER if which == "never" else rate > ALWAYS)):
            listed = ", ".join(submodules) or "every sub-module"
            findings.remark(
                name,
                f"The router has collapsed in part: it {which} runs {listed}. "
                + (
                    "Nothing would be lost by leaving it out of the model."
                    if which == "never"
                    else "Nothing is saved there."
                ),
            )


def inform_score_difference(measurements: Measurements, plan: Plan, findings: Findings) -> None:
    """Add how far the scores of the two scenarios are apart: quality is judged on one of them."""
    for arm in plan.named_arms():
        differences = [
            leg.score_difference
            for leg in (measurements.leg(arm, SINGLE_STREAM), measurements.leg(arm, OFFLINE))
            if leg.score_difference is not None
        ]
        name = f"noise/{arm}_score_difference"
        value = max(differences, default=None)
        findings.inform(
            Kpi(
                name=name,
                arm=arm,
                value=value,
                unit="",
                direction="lower",
                note="Largest relative difference of single-stream and offline scores of a row.",
            )
        )
        # Written so that NaN is remarked upon too.
        if value is not None and not value <= SCORE_DIFFERENCE:
            findings.remark(
                name,
                f"The {arm} scores a row differently one event at a time than in bulk (by up to "
                f"{value:.2g}): latency and quality were measured on two different functions.",
            )
