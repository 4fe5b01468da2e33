"""What a run of the tracking store says, and under which name; docs/mlflow.md lists the names.

A metric's section is what stands before its last slash. The pilot's own run has the comparisons
under their names in ``result.json`` and every gate beside its limit in section ``kpi``; an arm's
run has that arm's figures without its name in them, so that one chart holds all arms.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sma_core.checkpoint import CARD_FILE, read_card
from sma_pilot.decision.record import Decision
from sma_pilot.judge.result import Kpi, Result
from sma_pilot.judge.roi import BASES, CASES
from sma_pilot.plan import Plan
from sma_pilot.replay.card import ReplayCard
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.money import payback_text
from sma_pilot.report.svg import printable
from sma_pilot.report.words import kpi_topic

PLAN_TAG = "sma.plan_digest"
ARM_TAG = "sma.arm"
STAGE_TAG = "sma.stage"
STATE_TAG = "sma.state"
LOOK_TAG = "sma.look"
RECOMMENDATION_TAG = "sma.recommendation"
KIND_TAG = "sma.kind"
FINGERPRINT_TAG = "sma.fingerprint"
VERDICT_TAG = "sma.verdict"
DECISION_TAG = "sma.decision"
SIGNED_BY_TAG = "sma.signed_by"
SIGNED_AT_TAG = "sma.signed_at"
OVERRIDE_TAG = "sma.override"
RECORD_TAG = "sma.decision_sha256"
SINCE_TAG = "sma.since_signed"
GATE_TAG = "sma.gate."
PAYBACK_TAG = "sma.payback."
GATE_SECTION = "kpi"
# What the store's names may hold; a sub-module that somebody registered may be called anything.
_FOREIGN = re.compile(r"[^A-Za-z0-9_\-. /]")


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Contents of one run.

    Attributes
    ----------
    metrics : mapping
        Figures, all finite.
    curves : mapping name -> list of (step, value)
        Figures over training steps.
    params, tags : mapping
        Text.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    params: Mapping[str, str]
    tags: Mapping[str, str]


def decision_tags(decision: Decision) -> dict[str, str]:
    """Return what a run, or a version of a registered model, says of the decision on it."""
    return {
        DECISION_TAG: decision.decision,
        SIGNED_BY_TAG: printable(decision.by, 200),
        SIGNED_AT_TAG: decision.signed_at,
        OVERRIDE_TAG: str(decision.override).lower(),
        RECORD_TAG: decision.sha256,
    }


def pilot_entries(evidence: Evidence, *, unchanged: bool = True) -> Entries:
    """Return what the pilot's own run says.

    Parameters
    ----------
    evidence : Evidence
    unchanged : bool
        Whether the run folder is still what was signed; without a decision it does not matter.
    """
    result, plan, decisions = evidence.result, evidence.plan, evidence.decisions
    gates = [kpi for kpi in result.kpis if kpi.is_gate]
    compared = [kpi for kpi in result.kpis if kpi.arm is None]
    return Entries(
        # Pages list metrics and tags in this order: what decides comes first.
        metrics={
            **{name: value for kpi in gates for name, value in _against_limit(kpi)},
            **{metric_name(kpi.name): kpi.value for kpi in compared if kpi.value is not None},
        },
        params=plan_params(plan),
        tags={
            VERDICT_TAG: result.verdict,
            **(decision_tags(decisions[-1]) if decisions else {}),
            **({SINCE_TAG: "unchanged" if unchanged else "changed"} if decisions else {}),
            **{GATE_TAG + _gate_name(kpi): kpi.status for kpi in gates},
            **dict(_paybacks(result)),
            PLAN_TAG: plan.digest,
            "sma.dataset_digest": evidence.dataset.card.digest,
            "sma.result_sha256": evidence.result_sha256,
            "sma.folder": str(evidence.run.path.resolve()),
        },
    )


def plan_params(plan: Plan) -> dict[str, str]:
    """Return every setting that a plan makes, as params."""
    settings = plan.model_dump(mode="json", exclude={"version", "description"})
    if not settings["stages"]:
        del settings["stages"]
    return {metric_name(name): value for name, value in _leaves(settings)}


def gate_curves(results: Mapping[int, Result]) -> dict[str, list[tuple[int, float]]]:
    """Return each gate's value, bounds and limit over the steps at which it was judged."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, result in results.items():
        for kpi in result.kpis:
            for name, value in _against_limit(kpi) if kpi.is_gate else ():
                curves.setdefault(name, []).append((step, value))
    return curves


def arm_entries(evidence: Evidence, arm: str) -> Entries:
    """Return what the run of one arm says; `CheckpointError` when its model is damaged."""
    plan = evidence.plan.named_arms()[arm]
    fingerprint = ReplayCard.load(evidence.run.replay / "replay.json").models.get(arm, "")
    tables = {"model", "training"}  # of a fit they are told from what was fitted, below
    params = dict(_leaves(plan.model_dump(mode="json", exclude=tables)))
    curves: dict[str, list[tuple[int, float]]] = {}
    folder = evidence.run.models / arm
    if (folder / CARD_FILE).exists():  # else a baseline, without an architecture to tell of
        card = read_card(folder)
        fit = card["provenance"].get("fit", {})
        params |= dict(_leaves({"model": card["config"], "training": fit.get("training", {})}))
        curves = _curves(fit.get("history", []))
    return Entries(
        metrics={
            metric_name(f"{kpi.name.split('/')[0]}/{kpi_topic(kpi)}"): kpi.value
            for kpi in evidence.result.kpis
            if kpi.arm == arm and kpi.value is not None
        },
        curves=curves,
        params={metric_name(name): value for name, value in params.items()},
        tags={
            PLAN_TAG: evidence.plan.digest,
            ARM_TAG: arm,
            **({STAGE_TAG: evidence.run.stage} if evidence.run.stage else {}),
            KIND_TAG: plan.kind,
            **({FINGERPRINT_TAG: fingerprint} if fingerprint else {}),
        },
    )


def _gate_name(kpi: Kpi) -> str:
    return metric_name(kpi.name).replace("/", "_")


def _paybacks(result: Result) -> Iterator[tuple[str, str]]:
    """Give the paybacks of each basis as words: `never` is no number that a metric could hold."""
    kpis = {kpi.name: kpi for kpi in result.kpis}
    for basis in BASES:
        own = [kpis.get(f"cost/{basis}/{case}/payback_years") for case in CASES]
        known = [payback_text(kpi) for kpi in own if kpi is not None]
        if len(known) == len(CASES) and set(known) != {"not measured"}:
            conservative, base, optimistic = known
            words = f"{base} (conservative {conservative}, optimistic {optimistic})"
            yield f"{PAYBACK_TAG}{basis}", words


def _against_limit(kpi: Kpi) -> Iterator[tuple[str, float]]:
    """Give the gate's value, bounds and limit, as far as they are known."""
    low, high = kpi.interval or (None, None)
    ends = {"": kpi.value, "_low": low, "_high": high, "_limit": kpi.threshold}
    return (
        (f"{GATE_SECTION}/{_gate_name(kpi)}{end}", x) for end, x in ends.items() if x is not None
    )


def _curves(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in history:
        for name in ("train_loss", "validation_loss", "activation_rate"):
            if (value := point.get(name)) is not None:
                curves.setdefault(f"training/{name}", []).append((point["step"], value))
    return curves


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Give every setting that was made, nested tables joined by dots; a list is one JSON text."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    elif content is not None:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        yield path, text


def metric_name(name: str) -> str:
    """Return `name` without the characters that the store takes in no name."""
    return _FOREIGN.sub("_", name)
