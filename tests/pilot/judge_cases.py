"""Synthetic measurements whose right answers are known by construction."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sma_pilot.judge.measurements import AlignedSlice, ArmScores, LatencySample, Leg, Measurements
from sma_pilot.judge.result import Result
from sma_pilot.plan import Plan

HEADLINE = "quality/loss_event_recall"
BOTH = ("validation", "judged")
GATES = (HEADLINE, "quality/unscored_by_candidate", "latency/ratio_p95", "memory/ratio")

MINUTE = 60 * 10**9
START = 1_700_000_040 * 10**9  # on a full minute


def make_plan(task: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Plan:
    """A valid plan; `quality={"alpha": 0.1}` and the like change single fields."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "case",
        "log": {
            "files": ["x.csv"],
            "time": "time",
            "label": "label",
            "numeric": ["x"],
            "period": "1m",
            "max_gap": "1h",
        },
        "slices": {"validation_from": 0.4, "judged_from": 0.5},
        "task": task or {"kind": "forecast_anomaly"},
        "quality": {
            "loss_limit": 0.1,
            "false_alarms_per_day": 2,
            "alarm_merge": "10m",
            "resamples": 400,
        },
        "efficiency": {},
        "arms": {"incumbent": {"kind": "transformer"}, "candidate": {"kind": "sma"}},
    }
    for name, fields in sections.items():
        document[name] = {**document.get(name, {}), **fields}
    return Plan.model_validate(document)


def make_class_plan() -> Plan:
    """A plan that tells the class of every ten minutes."""
    return make_plan(
        task={"kind": "classification", "window": "10m"},
        log={"label": None, "class_label": "state"},
        quality={"headline": "macro_f1", "false_alarms_per_day": None, "alarm_merge": None},
    )


def with_classes(measurements: Measurements) -> Measurements:
    """The same rows in runs of two classes, all told rightly, with certainty."""
    scores = {
        name: {
            arm: replace(
                own,
                label=np.arange(own.rows) // 40 % 2,
                predicted=np.arange(own.rows) // 40 % 2,
                squared_error=np.zeros(own.rows, np.float32),
            )
            for arm, own in arms.items()
        }
        for name, arms in measurements.scores.items()
    }
    return replace(measurements, scores=scores, dataset={"classes": ["idle", "busy"]})


def make_slice(label, scores: Mapping[Any, Any], entity=None, time=None, name="judged"):
    """An aligned slice of one row a minute."""
    label = np.asarray(label, dtype=np.int32)
    entity = np.zeros(label.size, np.int32) if entity is None else np.asarray(entity, np.int32)
    if time is None:
        time = START + MINUTE * np.arange(label.size)
    return AlignedSlice(
        name=name,
        entity=entity,
        time=np.asarray(time, dtype=np.int64),
        label=label,
        scores={arm: np.asarray(score, dtype=np.float32) for arm, score in scores.items()},
    )


def fleet_scores(
    hits: Mapping[Any, np.ndarray],
    *,
    entities: int = 4,
    spacing: int = 300,
    length: int = 5,
    seed=0,
) -> dict[str, dict[str, ArmScores]]:
    """Scores of arms that catch exactly the events that `hits` [E] says.

    Normal rows score in [0, 1), the same for all arms; a caught event scores 2, a missed one 0.
    Events are `length` rows long, `spacing` rows apart and staggered over the entities.
    """
    rng = np.random.default_rng(seed)
    events = next(iter(hits.values())).size
    rows = spacing * -(-events // entities)
    slices = {}
    for place, name in enumerate(("validation", "judged")):
        entity = np.repeat(np.arange(entities, dtype=np.int32), rows)
        time = START + MINUTE * (np.tile(np.arange(rows), entities) + place * rows)
        label = np.zeros(entity.size, np.int32)
        normal = rng.random(entity.size).astype(np.float32)
        starts = []
        if name == "judged":
            for event in range(events):
                machine, turn = event % entities, event // entities
                offset = (machine + 1) * spacing // (entities + 2)
                starts.append(machine * rows + turn * spacing + offset)
            for start in starts:
                label[start : start + length] = 1
        slices[name] = {}
        for arm, hit in hits.items():
            score = normal.copy()
            for start, caught in zip(starts, hit, strict=False):
                score[start : start + length] = 2.0 if caught else 0.0
            slices[name][arm] = ArmScores(entity=entity, time=time, label=label, score=score)
    return slices


def latency_sample(factor=1.0, *, passes=3, queries=400, seed=0, spread=0.1) -> LatencySample:
    """Log-normal service times of about `factor` milliseconds."""
    rng = np.random.default_rng(seed)
    size = passes * queries
    return LatencySample(
        service_ns=(1e6 * factor * rng.lognormal(0, spread, size)).astype(np.int64),
        pass_index=np.repeat(np.arange(passes, dtype=np.int32), queries),
        query=np.tile(np.arange(queries), passes),
        active_share=np.full(size, np.nan, np.float32),
    )


def make_measurements(
    scores: dict[str, dict[str, ArmScores]] | None = None,
    *,
    events: int = 120,
    candidate_misses: int = 0,
    **changes: Any,
) -> Measurements:
    """Measurements that pass every gate of `make_plan`, but for the misses and the changes."""
    if scores is None:
        caught = np.ones(events, bool)
        # At random places: misses at equal distances would look like a long memory.
        candidate = caught.copy()
        candidate[np.random.default_rng(9).permutation(events)[:candidate_misses]] = False
        scores = fleet_scores(
            {"incumbent": caught, "incumbent_again": caught, "candidate": candidate}
        )
    entities = int(scores["judged"]["incumbent"].entity.max(initial=0)) + 1
    fields: dict[str, Any] = {
        "entities": tuple(f"machine {index}" for index in range(entities)),
        "scores": scores,
        "latency": {
            "incumbent": latency_sample(1.0, seed=1),
            "incumbent_again": latency_sample(1.0, seed=2),
            "candidate": latency_sample(0.6, seed=3),
        },
        "legs": {
            "incumbent/offline": Leg(
                rows_per_second=1000.0, weight_bytes=4000, state_bytes_per_entity=1000
            ),
            "candidate/offline": Leg(
                rows_per_second=2500.0,
                weight_bytes=3000,
                state_bytes_per_entity=500,
                activation_rate=0.4,
            ),
        },
        "dataset": {"name": "case"},
        "environment": {"cpu": "none"},
    }
    return Measurements(**{**fields, **changes})


def statuses(result: Result) -> dict[str, str]:
    """Return the status of each gate."""
    return {kpi.name: kpi.status for kpi in result.kpis if kpi.is_gate}


def reason(result: Result, kpi: str) -> str:
    """Return what the verdict says of a figure."""
    return next(item.text for item in result.reasons if item.kpi == kpi)


def only_open_gate(result: Result, gate: str) -> None:
    """All gates pass but one, which is inconclusive, and so is the verdict."""
    assert statuses(result) == {**dict.fromkeys(GATES, "pass"), gate: "inconclusive"}
    assert result.verdict == "inconclusive"


def rescored(
    measurements: Measurements, arms: tuple[str, ...], slices: tuple[str, ...], value: float
) -> Measurements:
    """Return the same with one score for every row of these arms in these slices."""
    scores = {
        name: {
            arm: replace(table, score=np.full(table.rows, value, np.float32))
            if arm in arms and name in slices
            else table
            for arm, table in tables.items()
        }
        for name, tables in measurements.scores.items()
    }
    return replace(measurements, scores=scores)
