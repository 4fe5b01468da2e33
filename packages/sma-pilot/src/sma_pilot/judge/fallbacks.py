"""What the guard's fallbacks come to, an event: how many, how many looks, how much machine time.

A fallback takes the incumbent's time on the rows that it serves, and the time of bringing models up
to date. The candidate's time that is saved on those rows is not credited.
"""

from collections.abc import Mapping

from sma_pilot.judge.guard_record import GuardRecord, GuardTally
from sma_pilot.judge.latency import ArmLatency
from sma_pilot.judge.measurements import INCUMBENT
from sma_pilot.judge.roi import Fallbacks
from sma_pilot.plan import Plan

LATENCY = "latency"


def fallbacks_of(
    record: GuardRecord | None, latency: Mapping[str, ArmLatency], plan: Plan
) -> Fallbacks | None:
    """Return what the guard did in a replay; None when none was replayed on judged rows.

    What lies in the rows shows on judged rows in bulk, lateness in the stream of single events.
    """
    share = None if record is None else held_share(record.judged)
    if record is None or share is None:
        return None
    rate = share + _per_event(record.stream, record.stream.fallback_rows)
    looks = record.judged.looks / record.judged.rows
    if plan.guard is not None and plan.guard.fallback == "person":
        looks += _per_event(record.stream, record.stream.fallbacks)
    return Fallbacks(
        rate=rate,
        looks=looks,
        seconds=_seconds(record, rate, latency, plan),
        # From the canary on the candidate is timed as it serves.
        in_service_time=plan.guard is not None and any(stage.serves for stage in plan.stages),
    )


def held_share(tally: GuardTally) -> float | None:
    """Return the share of rows that the fallback served for what lies in the rows."""
    held = sum(rows for reason, rows in tally.fallback_rows.items() if reason != LATENCY)
    return held / tally.rows if tally.rows else None


def _per_event(stream: GuardTally, counts: Mapping[str, int]) -> float:
    return counts[LATENCY] / stream.rows if stream.rows else 0.0


def _seconds(
    record: GuardRecord, rate: float, latency: Mapping[str, ArmLatency], plan: Plan
) -> float | None:
    served = 0.0
    if plan.guard is not None and plan.guard.fallback == INCUMBENT and rate > 0:
        if INCUMBENT not in latency:
            return None
        served = rate * latency[INCUMBENT].mean_ms / 1e3
    return served + record.judged.priming_seconds / record.judged.rows
