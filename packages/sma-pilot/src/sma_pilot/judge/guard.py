"""The guard in KPIs and words: how often it fell back, why, at what price. It decides nothing.

What a fallback costs is worked out where money is (`fallbacks`, `roi`); here it is told.
"""

from sma_pilot.judge.fallbacks import LATENCY, held_share
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.guard_record import GuardRecord
from sma_pilot.judge.measurements import CANDIDATE, Measurements
from sma_pilot.judge.result import Kpi
from sma_pilot.judge.roi import Fallbacks, fallback_cost_per_year, serving_cost
from sma_pilot.plan import Money, Plan

# Rows of validation are usual ones: a guard that is away from the candidate for more of them than
# this has limits that do not fit the plant.
USUAL_SHARE = 0.05


def inform_guard(
    measurements: Measurements, fallbacks: Fallbacks | None, plan: Plan, findings: Findings
) -> None:
    """Add the KPIs of the guard, where the plan has one."""
    if plan.guard is None:
        return
    record = measurements.guard
    judged = None if record is None else record.judged
    shares = {
        "fallback_row_share": None if judged is None else held_share(judged),
        "validation_fallback_row_share": None if record is None else held_share(record.validation),
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
    _inform_cost(fallbacks, plan.money, findings)
    if record is not None:
        _remark(record, findings)


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


def _inform_cost(fallbacks: Fallbacks | None, money: Money | None, findings: Findings) -> None:
    """Add what fallbacks cost in all: the machine time for them and the plan's price of them."""
    cost, note = None, "The plan gives no prices."
    if money is not None:
        note = "Judged rows, the incumbent's service time or `money.fallback` are missing."
        handed = fallback_cost_per_year(money, fallbacks)
        if fallbacks is not None and fallbacks.seconds is not None and handed is not None:
            cost = serving_cost(fallbacks.seconds, money).per_year + handed
            note = (
                f"{fallbacks.seconds * 1e3:.3g} ms of a machine an event, which is in the "
                f"candidate's cost, and {handed:.6g} {money.currency} a year by `money.fallback`; "
                "the candidate's time that is saved meanwhile is not credited."
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


def _remark(record: GuardRecord, findings: Findings) -> None:
    judged = record.judged
    fallbacks = sum(judged.fallbacks.values()) + record.stream.fallbacks[LATENCY]
    share, usual = held_share(judged), held_share(record.validation)
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
