"""The words and tables of the page, ready to print: the template only lays them out."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sma_pilot.decision.record import Decision
from sma_pilot.judge.discordance import mcnemar_p
from sma_pilot.judge.measurements import (
    ARMS,
    BASELINE,
    CANDIDATE,
    INCUMBENT,
    VALIDATION,
)
from sma_pilot.judge.metrics import EVENT_RECALL
from sma_pilot.logs.vocabulary import UNKNOWN_VALUE
from sma_pilot.plan import Plan
from sma_pilot.replay.card import ReplayCard
from sma_pilot.report.classes import class_summary, confusion_tables
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.money import is_case, money_content
from sma_pilot.report.svg import printable
from sma_pilot.report.tables import arm_figures, comparisons, gate_rows
from sma_pilot.report.words import (
    STATUSES,
    VERDICTS,
    arm_label,
    format_interval,
    format_value,
    kpi_group,
    kpi_label,
)

_MOST_EVENTS = 15
_MOST_TEMPLATES = 20
_NO_LOAD = "Latency under load: events were sent one at a time, none waited for another."


def page_content(evidence: Evidence) -> dict[str, Any]:
    """Return everything that the template prints, drawings aside."""
    result = evidence.result
    symbol, word, meaning = VERDICTS[result.verdict]
    order = list(STATUSES)
    arms = [arm for arm in ARMS if any(kpi.arm == arm for kpi in result.kpis)]
    confidences = {kpi.confidence for kpi in result.kpis if kpi.is_gate and kpi.confidence}
    return {
        "plan": evidence.plan,
        "result": result,
        "verdict": {"symbol": symbol, "word": word, "meaning": meaning},
        "statuses": STATUSES,
        "reasons": sorted(result.reasons, key=lambda reason: order.index(reason.status)),
        "scope": _scope(evidence),
        "confidence": " or ".join(f"{100 * c:g} %" for c in sorted(confidences)),
        "arm_label": lambda arm: arm_label(arm).capitalize(),
        "compared": [arm for arm in arms if arm in (INCUMBENT, CANDIDATE, BASELINE)],
        "gates": gate_rows(result, arms),
        "events": _events(evidence),
        "confusion": confusion_tables(evidence) if evidence.plan.task.by_class else [],
        "baseline": _baseline(evidence),
        "money": money_content(result, evidence.plan.money),
        "rates": evidence.routing_rates(),
        "not_measured": _not_measured(evidence),
        "arms": arms,
        "figures": arm_figures(result, arms),
        "comparisons": comparisons(result),
        "templates": _templates(evidence),
        "slices": _slices(evidence),
        "models": _models(evidence),
        "provenance": _provenance(evidence),
        "decisions": [_decision(own, evidence) for own in reversed(evidence.decisions)],
        "is_signed_result": evidence.is_signed_result,
        "stage": _stage(evidence),
    }


def _scope(evidence: Evidence) -> str:
    rows = evidence.scene.rows
    first, last = (int(rows.time.min()), int(rows.time.max())) if rows.rows else (None, None)
    return (
        f"Judged on {rows.rows:,} rows of {np.unique(rows.entity).size:,} entities, "
        f"{_moment(first)} to {_moment(last)} UTC, with "
        f"{evidence.scene.events.count:,} labelled {evidence.plan.task.units}. Models saw earlier "
        "rows only."
    )


def _stage(evidence: Evidence) -> str:
    """Say which look of which stage the page is of; empty for a pilot of one stage."""
    if evidence.run.stage is None:
        return ""
    (stage,) = evidence.plan.stages
    looks = len(evidence.run.replays)
    return f"stage {stage.name}, look {looks} of {len(stage.look_times)}"


def _events(evidence: Evidence) -> dict[str, Any]:
    """Sum up who caught which event; list some, those on which the arms disagree first."""
    events, rows = evidence.scene.events, evidence.scene.rows
    if evidence.plan.task.by_class:
        return {"summary": class_summary(evidence), "caption": "", "arms": [], "rows": []}
    caught = {
        arm: own.caught
        for arm, own in evidence.quality.items()
        if own.caught is not None and arm in (INCUMBENT, CANDIDATE, BASELINE)
    }
    if not events.count or INCUMBENT not in caught or CANDIDATE not in caught:
        return {
            "summary": "The judged rows hold no labelled event that could be caught, or no arm has "
            "a threshold: what alarms are worth could not be measured.",
            "caption": "",
            "arms": [],
            "rows": [],
        }
    one, other = caught[INCUMBENT], caught[CANDIDATE]
    counts = [
        int(which.sum()) for which in (one & other, one & ~other, ~one & other, ~one & ~other)
    ]
    order = np.lexsort((events.start_time, one == other))[:_MOST_EVENTS]
    table = []
    for event in order:
        first, last = events.start[event], events.stop[event] - 1
        lasted = rows.time[last] - rows.time[first] + evidence.dataset.card.period_ns
        table.append(
            {
                "entity": printable(evidence.measurements.entities[rows.entity[first]]),
                "start": _moment(int(events.start_time[event])),
                "lasted": format_value(float(lasted) / 1e9, "s"),
                "caught": ["✓ caught" if own[event] else "✕ missed" for own in caught.values()],
            }
        )
    p_value = mcnemar_p(counts[1], counts[2])
    shown = "all" if events.count <= _MOST_EVENTS else f"{len(table)} of {events.count}"
    return {
        "summary": f"Of {events.count} labelled events both arms caught {counts[0]}, the "
        f"incumbent alone {counts[1]}, the candidate alone {counts[2]}, neither {counts[3]}. "
        f"Exact McNemar test of the differing ones: p = {p_value:.3g}.",
        "caption": f"Events of the judged rows ({shown}); those on which incumbent and candidate "
        "differ come first.",
        "arms": list(caught),
        "rows": table,
    }


def _baseline(evidence: Evidence) -> str:
    arm = evidence.plan.arms.baseline
    if arm is None:
        return (
            "The plan names no simple baseline, so nothing is known of how a method without a "
            "neural network would do here."
        )
    headline = evidence.plan.quality.headline
    words = [
        f"The simplest method that could do the job is {arm.title}."
        if arm.simple
        else f"Beside the two stands a third arm, {arm.title}."
    ]
    words += [
        f"Against the candidate it loses {format_value(kpi.value, kpi.unit)} of "
        f"{headline.replace('_', ' ')} ({format_interval(kpi)}; below zero it does better)."
        for kpi in evidence.result.kpis
        if kpi.name == f"quality/baseline_loss_{headline}" and kpi.value is not None
    ]
    words += [
        reason.text
        for reason in evidence.result.reasons
        if reason.kpi == f"quality/baseline_for_incumbent_loss_{headline}"
    ]
    own = evidence.quality.get(BASELINE)
    if own is not None and EVENT_RECALL in own.values and own.false_alarms_per_day is not None:
        words.append(
            f"It catches {own.values[EVENT_RECALL]:.0%} of the events at "
            f"{own.false_alarms_per_day:.2f} false alarms a day"
            f"{'' if evidence.plan.task.by_session else ' and entity'}."
        )
    return " ".join(words)


def _not_measured(evidence: Evidence) -> list[str]:
    """List what a reader might believe was measured and was not."""
    topics: dict[str, list[str]] = {}
    for kpi in evidence.result.kpis:
        if is_case(kpi):
            continue  # the table of money says so in its own place
        if kpi.status == "not_measured" or (kpi.is_gate and kpi.value is None):
            label = f"{kpi_group(kpi)}: {kpi_label(kpi).lower()}"
            topics.setdefault(f"{label}\0{kpi.note}", []).append(arm_label(kpi.arm or ""))
    lines = []
    for key, arms in topics.items():
        label, note = key.split("\0")
        named = ", ".join(arm for arm in arms if arm)
        lines.append(label + (f" ({named})" if named else "") + (f". {note}" if note else "."))
    judged = evidence.scene.rows.time
    last = _moment(int(judged.max()) if judged.size else None)
    return [
        *lines,
        *([] if "server" in evidence.plan.replay.scenarios else [_NO_LOAD]),
        "The way to the model: transport, parsing and storage are outside of every service time.",
        f"Anything after {last} UTC: a machine, a product or a sensor that changed since is not in "
        "these rows.",
        "People: whether an alarm leads to the right act in time was not part of the replay.",
    ]


def _slices(evidence: Evidence) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "first": _moment(split.first_time_ns),
            "last": _moment(split.last_time_ns),
            "rows": f"{split.rows:,}",
            "sequences": f"{split.sequences:,}",
            "sha256": split.sha256[:16],
        }
        for name, split in evidence.dataset.card.splits.items()
    ]


def _templates(evidence: Evidence) -> dict[str, Any]:
    """List the commonest templates that were mined from a text; nothing of a log without one."""
    mined = evidence.dataset.card.provenance.get("templates")
    if mined is None:
        return {"rows": [], "caption": ""}
    every = sorted(mined["templates"], key=lambda own: -own["lines"])
    shown = every[:_MOST_TEMPLATES]
    first = f"The {len(shown)} commonest of" if len(shown) < len(every) else "All"
    return {
        "caption": f"{first} {len(every):,} templates, mined from the lines of the train slice. A "
        f"line that has none of them is {UNKNOWN_VALUE}.",
        "rows": [
            {
                "template": printable(own["template"], 300),
                "lines": f"{own['lines']:,}",
                "example": printable(own["example"], 300),
            }
            for own in shown
        ],
    }


def _models(evidence: Evidence) -> list[dict[str, str]]:
    fingerprints = ReplayCard.load(evidence.run.replay / "replay.json").models
    rows = []
    for arm, plan in evidence.plan.named_arms().items():
        own = evidence.quality.get(arm)
        threshold = None if own is None else own.threshold
        given = plan.model_dump(
            mode="json", exclude={"kind", "training", "simple"}, exclude_defaults=True
        )
        given = given.get("model", given)
        settings = printable(json.dumps(given), 200) if given else "defaults"
        rows.append(
            {
                "label": arm_label(arm).capitalize(),
                "kind": plan.kind.replace("_", " "),
                "threshold": "none" if threshold is None else f"{threshold.value:.4g}",
                "basis": ""
                if threshold is None
                else f"{threshold.false_alarms} false alarms in {threshold.entity_days:.3g} entity "
                f"days of {VALIDATION} rows",
                "settings": settings,
                "fingerprint": fingerprints.get(arm, "")[:16],
            }
        )
    return rows


def _provenance(evidence: Evidence) -> list[tuple[str, str]]:
    plan, card = evidence.plan, evidence.dataset.card
    headline = plan.quality.headline.replace("_", " ")
    horizon = f", horizon {plan.task.horizon}" if plan.task.horizon else ""
    horizon += f", windows of {plan.task.window}" if plan.task.window else ""
    facts = [
        ("Plan digest", plan.digest),
        ("Result SHA-256", evidence.result_sha256),
        ("Data set digest", card.digest),
        ("Log files", ", ".join(plan.log.files)),
        ("Channels", f"{len(card.numeric)} numeric, {len(card.categorical)} categorical"),
        ("Task", plan.task.kind.replace("_", " ") + horizon),
        ("Headline", f"{headline}, largest accepted loss {plan.quality.loss_limit:g}"),
        *_declared_alarms(plan),
        ("Bootstrap", f"{plan.quality.resamples:,} resamples, seed {plan.seed}"),
    ]
    environment = [
        (key.replace("_", " ").capitalize(), str(value))
        for key, value in evidence.result.environment.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    return [(term, printable(text, 400)) for term, text in facts + environment]


def _declared_alarms(plan: Plan) -> list[tuple[str, str]]:
    declared = plan.quality.false_alarms_per_day
    if declared is None:
        return []
    entity = "" if plan.task.by_session else " and entity"
    return [("False alarms", f"{declared:g} a day{entity} declared")]


def _decision(decision: Decision, evidence: Evidence) -> dict[str, Any]:
    symbol, word, _ = VERDICTS[decision.decision]
    return {
        "number": decision.number,
        "word": f"{symbol} {word}",
        "by": printable(decision.by, 200),
        "moment": decision.moment,
        "reason": printable(decision.reason, 10_000),
        "verdict": VERDICTS[decision.verdict][1],
        "override": decision.override,
        "result": decision.files.get(evidence.run.name_of(evidence.run.result), "")[:16],
    }


def _moment(time_ns: int | None) -> str:
    if time_ns is None:
        return "none"
    return datetime.fromtimestamp(time_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")
