"""What the third arm tells: whether something simpler than the candidate would do. No gate."""

from collections.abc import Mapping

from sma_pilot.judge.findings import Findings, status_of
from sma_pilot.judge.footprint import memory_of
from sma_pilot.judge.latency import ArmLatency
from sma_pilot.judge.latency_gate import is_quiet
from sma_pilot.judge.measurements import (
    BASELINE,
    CANDIDATE,
    INCUMBENT,
    OFFLINE,
    AlignedSlice,
    Measurements,
)
from sma_pilot.judge.quality import Quality, count_only
from sma_pilot.judge.quality_gate import proven
from sma_pilot.plan import Plan


def remark_third_arm(
    measurements: Measurements,
    judged: AlignedSlice,
    quality: Quality,
    latency: Mapping[str, ArmLatency],
    plan: Plan,
    findings: Findings,
) -> None:
    """Say so when the third arm does as well and costs less, than the candidate or at all.

    Against the candidate: its loss is proven to be under the limit, and it is faster. In the
    incumbent's place, if it is a simple method: it meets every limit that the candidate has to,
    and unless the candidate does so too, for less, that is the better change.
    """
    if plan.arms.baseline is None or not proven(quality, plan):
        return
    gains = _against_candidate(measurements, quality, latency, plan)
    name = _name(plan)
    headline = plan.quality.headline
    if gains and quality.baseline is not None:
        findings.remark(
            f"quality/baseline_loss_{headline}",
            f"{name} does as well as the candidate (its loss against it is at most "
            f"{quality.baseline.losses[headline].high:.3f}) and {' and '.join(gains)}: "
            "consider it.",
        )
    if not plan.arms.baseline.simple or (findings.verdict == "go" and not gains):
        return
    merits = _for_incumbent(measurements, judged, quality, latency, plan)
    if merits:
        findings.remark(
            f"quality/baseline_for_incumbent_loss_{headline}",
            f"{name} meets every limit of the plan in the incumbent's place: {', '.join(merits)}. "
            f"To replace the incumbent by it ({plan.arms.baseline.title}) is a conclusion that "
            "these data allow.",
        )


def _name(plan: Plan) -> str:
    arm = plan.arms.baseline
    assert arm is not None  # noqa: S101  (asked before)
    return f"The {'simple baseline' if arm.simple else 'third arm'} ({arm.title})"


def _against_candidate(
    measurements: Measurements, quality: Quality, latency: Mapping[str, ArmLatency], plan: Plan
) -> list[str]:
    """Return what it is faster in; nothing unless it is proven to do as well."""
    loss = quality.baseline and quality.baseline.losses.get(plan.quality.headline)
    if not loss or loss.high >= plan.quality.loss_limit:
        return []
    gains = []
    if BASELINE in latency and CANDIDATE in latency:
        share = latency[BASELINE].mean_ms / latency[CANDIDATE].mean_ms
        if share < 1:
            gains.append(f"takes {share:.2g} of its time per event")
    rates = [measurements.leg(arm, OFFLINE).rows_per_second for arm in (BASELINE, CANDIDATE)]
    if rates[0] and rates[1] and rates[0] > rates[1]:
        gains.append(f"scores {rates[0] / rates[1]:.2g} times as many rows a second")
    return gains


def _for_incumbent(
    measurements: Measurements,
    judged: AlignedSlice,
    quality: Quality,
    latency: Mapping[str, ArmLatency],
    plan: Plan,
) -> list[str]:
    """Return how it stands to each limit; nothing unless every one is proven to be kept."""
    limits, percentile = plan.efficiency, plan.efficiency.latency_percentile
    comparison = quality.baseline_for_incumbent
    loss = comparison and comparison.losses.get(plan.quality.headline)
    if not loss or status_of(loss.low, loss.high, plan.quality.loss_limit) != "pass":
        return []
    if count_only(judged, INCUMBENT, BASELINE):
        return []
    ratio = latency[BASELINE].ratios.get(percentile) if BASELINE in latency else None
    if ratio is None or not is_quiet(latency, plan):
        return []
    if status_of(*ratio.interval, limits.latency_ratio_limit) != "pass":
        return []
    memory = [memory_of(measurements, arm) for arm in (BASELINE, INCUMBENT)]
    if memory[0] is None or memory[1] is None or not memory[1].total():
        return []
    share = memory[0].total() / memory[1].total()
    if share > limits.memory_ratio_limit:
        return []
    return [
        f"its loss is at most {loss.high:.3f}",
        f"its p{percentile:g} at most {ratio.interval[1]:.2g} of the incumbent's",
        f"its memory {share:.2g} of it",
    ]
