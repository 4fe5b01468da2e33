"""The guard in KPIs and words: how often it fell back, why, at what price. It decides nothing.

A fallback costs the incumbent's time on the rows that it serves, the time of bringing models up to
date, and a person's looks. The candidate's time that is saved on those rows is not credited.
"""

from collections.abc import Mapping

from sma_pilot.judge.findings import Findings
from sma_pilot.judge.guard_record import GuardRecord, GuardTally
from sma_pilot.judge.latency import ArmLatency
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, Measurements
from sma_pilot.judge.result import Kpi
from sma_pilot.judge.roi import serving_cost
from sma_pilot.plan import Plan

LATENCY = "latency"
# Rows of validation are usual ones: a guard that is away from the candidate for more of them than
# this has limits that do not fit the plant.
USUAL_SHARE = 0.05


def inform_guard(
    measurements: Measurements, latency: Mapping[str, ArmLatency], plan: Plan, findings: Findings
) -> None:
    """Add the KPIs of the guard, where the plan has one."""
    if plan.guard is None:
        return
    record = measurements.guard
    judged = None if record is None else record.judged
    shares = {
        "fallback_row_share": None if judged is None else _share(judged),
        "validation_fallback_row_share": None if record is None else _share(record.validation),
    }
    notes = {
        "fallback_row_share": "Judged rows that the candidate did not serve, lateness left out.",
        "validation_fallback_row_share": "The same of validation rows: what the limits do "
        "when nothing is wrong.",
    }
    for name, value in shares.items():
        findings.inform(
            Kpi(
                name=f"guard/{name}",
                arm=CANDIDATE,
                value=value,
                unit="",
                direction="lower",
                note=notes[name],
            )
        )
    for reason in _watched(plan):
        tally = None if record is None else (record.stream if reason == LATENCY else judged)
        findings.inform(
            Kpi(
                name=f"guard/{reason}_fallbacks",
                arm=CANDIDATE,
                value=None if tally is None or not tally.rows else tally.fallbacks[reason],
                unit="fallbacks",
                direction="lower",
                note="" if tally is None else f"Begun or renewed, on {tally.rows:,} events.",
            )
        )
    findings.inform(
        Kpi(
            name="guard/looks",
            arm=CANDIDATE,
            value=None if judged is None else judged.looks,
            unit="looks",
            direction="lower",
            note="Times that a person was asked, on judged rows.",
        )
    )
    own = None if record is None or record.seconds_per_event is None else record.seconds_per_event
    findings.inform(
        Kpi(
            name="guard/own_time_ms",
            arm=CANDIDATE,
            value=None if own is None else own * 1e3,
            unit="ms",
            direction="lower",
            note="What the guard takes of each event, the models' time left out.",
        )
    )
    _inform_cost(record, latency, plan, findings)
    if record is not None:
        _remark(record, findings)


def fallbacks_per_million(record: GuardRecord | None) -> float | None:
    """Return how many of a million events the fallback serves; None when no guard was replayed."""
    share = None if record is None else _share(record.judged)
    if record is None or share is None:
        return None
    return 1e6 * (share + _late_share(record))


def _watched(plan: Plan) -> list[str]:
    """Return the reasons that the plan's guard can fall back for, in the order of docs/guard.md."""
    guard = plan.guard
    assert guard is not None  # noqa: S101  (the only caller has seen to it)
    limits = {
        "exception": True,
        "non_finite": True,
        LATENCY: guard.latency_budget_ms,
        "low_confidence": guard.minimum_confidence,
        "never_active": guard.never_active,
        "always_active": guard.always_active,
        "drift": guard.drift_limit,
    }
    return [reason for reason, limit in limits.items() if limit is not None]


def _share(tally: GuardTally) -> float | None:
    """Return the share of rows that the fallback served for what lies in the rows."""
    held = sum(rows for reason, rows in tally.fallback_rows.items() if reason != LATENCY)
    return held / tally.rows if tally.rows else None


def _late_share(record: GuardRecord) -> float:
    """Return the share of events of the stream that the fallback served for lateness."""
    stream = record.stream
    return stream.fallback_rows[LATENCY] / stream.rows if stream.rows else 0.0


def _inform_cost(
    record: GuardRecord | None,
    latency: Mapping[str, ArmLatency],
    plan: Plan,
    findings: Findings,
) -> None:
    money, guard = plan.money, plan.guard
    assert guard is not None  # noqa: S101  (the only caller has seen to it)
    cost, note = None, "The plan gives no prices."
    if money is not None:
        note = "Judged rows, the incumbent's service time or the price of a look are missing."
        seconds = None if record is None else _seconds(record, latency, plan)
        looks = None if record is None else _looks(record, plan)
        price = guard.person_cost if looks else 0.0
        if seconds is not None and looks is not None and price is not None:
            cost = serving_cost(seconds, money).per_year + looks * price * money.events_per_year
            note = (
                f"{seconds * 1e3:.3g} ms of a machine and {looks:.3g} looks an event; the "
                "candidate's time that is saved meanwhile is not credited."
            )
    findings.inform(
        Kpi(
            name="guard/fallback_cost_per_year",
            arm=CANDIDATE,
            value=cost,
            unit="" if money is None else f"{money.currency}/year",
            direction="lower",
            note=note,
        )
    )


def _seconds(record: GuardRecord, latency: Mapping[str, ArmLatency], plan: Plan) -> float | None:
    """Return the machine time that fallbacks add, in seconds an event."""
    share = _share(record.judged)
    if share is None:
        return None
    late = _late_share(record)
    served = 0.0
    if plan.guard is not None and plan.guard.fallback == INCUMBENT and share + late > 0:
        if INCUMBENT not in latency:
            return None
        served = (share + late) * latency[INCUMBENT].mean_ms / 1e3
    return served + record.judged.priming_seconds / record.judged.rows


def _looks(record: GuardRecord, plan: Plan) -> float | None:
    """Return how often a person is asked, an event."""
    if not record.judged.rows:
        return None
    late = 0.0
    if plan.guard is not None and plan.guard.fallback == "person" and record.stream.rows:
        late = record.stream.fallbacks[LATENCY] / record.stream.rows
    return record.judged.looks / record.judged.rows + late


def _remark(record: GuardRecord, findings: Findings) -> None:
    judged = record.judged
    fallbacks = sum(judged.fallbacks.values()) + record.stream.fallbacks[LATENCY]
    share, usual = _share(judged), _share(record.validation)
    if fallbacks and share is not None:
        reasons = {**judged.fallbacks, LATENCY: record.stream.fallbacks[LATENCY]}
        counts = ", ".join(
            f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons.items() if count
        )
        findings.remark(
            "guard/fallback_row_share",
            f"The guard took {share:.2%} of the judged rows away from the candidate ({counts}). "
            f"First of each: {'; '.join(record.examples)}.",
        )
    if usual is not None and usual > USUAL_SHARE:
        findings.remark(
            "guard/validation_fallback_row_share",
            f"The guard is away from the candidate for {usual:.1%} of the validation rows, where "
            "nothing is known to be wrong: its limits do not fit this plant.",
        )
