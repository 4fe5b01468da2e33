"""Times under load as KPIs: batches of many entities, and an open loop. They decide nothing."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.findings import Findings
from sma_pilot.judge.latency import MEDIAN, ArmLatency, minimum_queries
from sma_pilot.judge.load_sample import LoadSample
from sma_pilot.judge.measurements import MULTI_STREAM, OFFLINE, SERVER, Measurements
from sma_pilot.judge.result import Kpi
from sma_pilot.plan import Plan

INVALID = "Invalid: the harness fell behind its schedule. Time again on a quiet machine."


def inform_load(measurements: Measurements, plan: Plan, findings: Findings) -> None:
    """Add the KPIs of the scenarios that the plan asks for."""
    for scenario in plan.replay.scenarios:
        for arm in plan.named_arms():
            sample = measurements.load.get(f"{arm}/{scenario}")
            if scenario == MULTI_STREAM:
                _inform_batches(arm, sample, plan, findings)
            elif scenario == SERVER:
                _inform_server(arm, sample, plan, findings)


def percentile_ms(times_ns: NDArray[np.int64], percentile: float) -> float | None:
    """Return a percentile by nearest rank, in ms; None when `minimum_queries` forbids it."""
    if times_ns.size < minimum_queries(percentile):
        return None
    rank = int(np.ceil(times_ns.size * percentile / 100 * (1 - 1e-12)))
    return float(np.sort(times_ns)[max(rank, 1) - 1]) / 1e6


def keeps_bound(times_ns: NDArray[np.int64], bound_ms: float, percentile: float) -> bool:
    """Tell whether the percentile of times is proven to be within a bound.

    By LoadGen's early-stopping rule: with k queries over the bound, there must be at least
    ``minimum_queries(percentile, k)`` in all.
    """
    over = int((times_ns > bound_ms * 1e6).sum())
    if over > times_ns.size * (1 - percentile / 100):
        return False
    return times_ns.size >= minimum_queries(percentile, over)


def _inform_batches(arm: str, sample: LoadSample | None, plan: Plan, findings: Findings) -> None:
    note = "The scenario did not run, or no entity had enough rows."
    rate = None
    if sample is not None and sample.service_ns.size:
        note = f"{sample.service_ns.size:,} batches of {sample.events_per_query} entities' rows."
        rate = sample.events_per_query * sample.service_ns.size / (sample.service_ns.sum() / 1e9)
    _percentiles(arm, "multi_stream", sample and sample.service_ns, plan, note, findings)
    findings.inform(
        Kpi(
            name=f"throughput/{arm}_multi_stream_rows_per_second",
            arm=arm,
            value=rate,
            unit="rows/s",
            direction="higher",
            note=note,
        )
    )


def _inform_server(arm: str, sample: LoadSample | None, plan: Plan, findings: Findings) -> None:
    note, valid = "The scenario did not run.", False
    if sample is not None:
        valid = sample.is_valid
        note = INVALID
        if valid:
            note = f"{sample.service_ns.size:,} events at {sample.offered_rate or 0:.4g} a second."
    for kind in ("response", "service"):
        times = getattr(sample, f"{kind}_ns") if sample is not None and valid else None
        _percentiles(arm, f"server_{kind}", times, plan, note, findings)
    findings.inform(
        Kpi(
            name=f"throughput/{arm}_sustainable_events_per_second",
            arm=arm,
            value=None if sample is None else sample.sustainable_rate,
            unit="events/s",
            direction="higher",
            note="The scenario did not run." if sample is None else sample.search_note,
        )
    )
    if sample is not None and not valid:
        findings.remark(
            f"latency/{arm}_server_response_p{plan.efficiency.latency_percentile:g}_ms",
            f"The open loop of the {arm} is invalid: the harness fell behind its schedule, so the "
            "load was less than declared. Time it again on a quiet machine.",
        )


def _percentiles(
    arm: str,
    topic: str,
    times_ns: NDArray[np.int64] | None,
    plan: Plan,
    note: str,
    findings: Findings,
) -> None:
    for percentile in dict.fromkeys((MEDIAN, plan.efficiency.latency_percentile)):
        value = None if times_ns is None else percentile_ms(times_ns, percentile)
        own = note
        if times_ns is not None and value is None:
            least = minimum_queries(percentile)
            own = f"Not estimable: {times_ns.size} queries, LoadGen's rule asks for {least}."
        findings.inform(
            Kpi(
                name=f"latency/{arm}_{topic}_p{percentile:g}_ms",
                arm=arm,
                value=value,
                unit="ms",
                direction="lower",
                note=own,
            )
        )


def inform_harness(
    measurements: Measurements, plan: Plan, latency: Mapping[str, ArmLatency], findings: Findings
) -> None:
    """Add what the harness itself takes with an event, as a share of an arm's service time."""
    own_ns = measurements.environment.get("harness_ns")
    for arm in plan.named_arms():
        mean = latency[arm].mean_ms if arm in latency else None
        findings.inform(
            Kpi(
                name=f"noise/{arm}_harness_share",
                arm=arm,
                value=own_ns / 1e6 / mean if own_ns is not None and mean else None,
                unit="",
                direction="lower",
                note="Time an event of the harness with a model that does nothing, over the mean "
                "service time.",
            )
        )


def inform_energy(measurements: Measurements, plan: Plan, findings: Findings) -> None:
    """Add the accelerator's energy a million offline rows."""
    for arm in plan.named_arms():
        leg = measurements.leg(arm, OFFLINE)
        value = None
        if leg.energy_joules is not None and leg.timed:
            value = leg.energy_joules / leg.timed * 1e6
        findings.inform(
            Kpi(
                name=f"energy/{arm}_joules_per_million_events",
                arm=arm,
                value=value,
                unit="J",
                direction="lower",
                note="The whole board, by its own counter."
                if value is not None
                else "No energy counter could be read.",
            )
        )
