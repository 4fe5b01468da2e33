"""A judged run folder made from a seed in about a second: real formats, invented measurements.

Signals, scores, service times and routing decisions are drawn so that they hang together: an
event disturbs the channels, the disturbance raises scores, and the candidate runs more of its
sub-modules there and takes longer. Names are hostile on purpose.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from sma_core import HeadConfig, InputConfig, ModelConfig, build_model
from sma_core.checkpoint import save_checkpoint
from sma_core.dataset import DatasetWriter, NumericChannel, PreparedDataset
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan
from sma_pilot.replay.card import ReplayCard, describe_dataset
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.parts import write_parquet
from sma_pilot.run_folder import RunFolder, write_json

ENTITIES = ("press <script>alert(1)</script>", "mill $\\frac", "机器-3")
CHANNELS = ('"><img src=x onerror=alert(2)>', "temperature", "vibration", "load]]>", "flow & level")
SUBMODULES = ("gated_attention", "swiglu")
LAYERS = 2
MINUTE = 60 * 10**9
START = 1_700_000_000 * 10**9


def make_plan(**changes: Any) -> Plan:
    """Return a plan; `changes` replace whole tables of it."""
    tables: dict[str, Any] = {
        "version": 1,
        "name": "fabricated",
        "description": "Presses of hall 3 <b>spring</b>",
        "seed": 7,
        "log": {
            "files": ["plant/*.parquet"],
            "time": "time",
            "entity": "machine",
            "label": "fault",
            "numeric": list(CHANNELS),
            "period": "1m",
            "max_gap": "1h",
        },
        "slices": {"validation_from": 0.3, "judged_from": 0.5},
        "task": {"kind": "forecast_anomaly"},
        "quality": {
            "loss_limit": 0.12,
            "false_alarms_per_day": 2,
            "alarm_merge": "10m",
            "resamples": 200,
            "block": "6h",
        },
        "money": {
            "currency": "EUR",
            "price_per_hour": 0.8,
            "price_source": "list price of the edge box",
            "events_per_year": 5e8,
            "setup": {"amount": 40, "source": "offer of <i>spring</i>"},
            "running": {"amount": 5, "source": "controlling"},
        },
        "arms": {
            "incumbent": {"kind": "dense_twin"},
            "candidate": {"kind": "sma"},
            "baseline": {"kind": "pca"},
        },
        "replay": {"single_stream_events": 500, "passes": 2},
    }
    return Plan.model_validate(tables | changes)


def make_run(
    root: Path,
    *,
    kind: Literal["go", "no-go", "inconclusive"] = "go",
    days: int = 16,
    routes: bool = True,
    labelled: bool = True,
    **changes: Any,
) -> RunFolder:
    """Write a run folder up to ``result.json``; `kind` is the verdict that its figures call for."""
    plan = make_plan(**changes)
    run = RunFolder.create(plan, root)
    generator = np.random.default_rng(plan.seed)
    rows = _make_rows(run, plan, days, generator, labelled)
    dataset = PreparedDataset.open(run.dataset)
    _make_checkpoint(run, dataset)
    caught_by_candidate = {"go": 0.98, "no-go": 0.45, "inconclusive": 0.93}[kind]
    scores = _make_scores(rows, caught_by_candidate, generator)
    activity = _make_routing(rows, scores["candidate"], generator)
    for arm, score in scores.items():
        frame = rows.with_columns(score=score, arm=pl.lit(arm)).select(
            "arm", "slice", "entity", "time", "label", pl.col("score").cast(pl.Float32)
        )
        write_parquet(frame, run.replay / "scores" / f"part-{arm}-00000.parquet")
        latency = _make_latency(rows, arm, activity, plan, generator)
        write_parquet(latency, run.replay / "latency" / f"part-{arm}-00000.parquet")
    if routes:
        routing = _routing_frame(rows, activity)
        write_parquet(routing, run.replay / "routing" / "part-candidate-00000.parquet")
    _write_card(run, plan, dataset, list(scores), activity if routes else None)
    write_json(run.result, judge(load_measurements(run.replay), plan).to_dict())
    return run


def read_result(run: RunFolder) -> Result:
    """Return the run's result."""
    return Result.from_dict(json.loads(run.result.read_text(encoding="utf-8")))


def _make_rows(
    run: RunFolder, plan: Plan, days: int, generator: np.random.Generator, labelled: bool
) -> pl.DataFrame:
    """Write the prepared data set; return its validation and judged rows."""
    steps = days * 1440
    border = [int(steps * share) for share in (0.0, 0.3, 0.5, 1.0)]
    frames = []
    with DatasetWriter(
        run.dataset,
        name=plan.name,
        numeric=[NumericChannel(name=name) for name in CHANNELS],
        categorical=[],
        period_ns=MINUTE,
        entities=ENTITIES,
        provenance={"plan": plan.digest},
    ) as writer:
        for code, entity in enumerate(ENTITIES):
            time = START + MINUTE * np.arange(steps)
            label = np.zeros(steps, dtype=np.int32)
            for start in range(border[1] + 200 + 97 * code, steps - 60, 700):
                label[start : start + generator.integers(8, 40)] = 1
            if not labelled:
                label[:] = -1
            phase = np.arange(steps)[:, None] / (240 * (1 + np.arange(len(CHANNELS))))
            signal = np.sin(2 * np.pi * phase) + 0.15 * generator.standard_normal(
                (steps, len(CHANNELS))
            )
            signal[label > 0, :2] += 1.5 + generator.standard_normal((int((label > 0).sum()), 2))
            for place, name in enumerate(("train", "validation", "judged")):
                part = slice(border[place], border[place + 1])
                writer.append(
                    name,
                    entity=code,
                    time=torch.from_numpy(time[part]),
                    numeric=torch.from_numpy(signal[part]).float(),
                    label=torch.from_numpy(label[part]),
                )
                if name != "train":
                    frames.append(
                        pl.DataFrame(
                            {"time": time[part], "label": label[part]},
                        ).select(
                            slice=pl.lit(name),
                            entity=pl.lit(entity, dtype=pl.Enum(ENTITIES)),
                            time="time",
                            label="label",
                        )
                    )
    return pl.concat(frames)


def _make_checkpoint(run: RunFolder, dataset: PreparedDataset) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        inputs=InputConfig(numeric=len(CHANNELS)),
        head=HeadConfig(kind="forecast", outputs=len(CHANNELS)),
        width=16,
        layers=LAYERS,
        states=4,
    )
    save_checkpoint(
        run.models / "candidate",
        build_model(config),
        provenance={"steps": 0},
        dataset_card=dataset.card.to_dict(),
    )


def _make_scores(
    rows: pl.DataFrame, caught: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    inside = rows["label"].to_numpy() > 0
    event = np.cumsum(np.diff(inside.astype(np.int8), prepend=0) == 1)
    base = generator.gamma(2.0, 0.5, size=inside.size)
    common = generator.random(event.max() + 1)

    def score(recall: float, noise: float) -> np.ndarray:
        jitter = 1 + noise * generator.standard_normal(inside.size)
        heard = common[event] < recall
        return base * np.abs(jitter) + inside * np.where(heard, 9.0, 0.4) * base

    incumbent = score(0.97, 0.0)
    return {
        "incumbent": incumbent,
        "incumbent_again": incumbent,
        "candidate": score(caught, 0.05),
        "baseline": score(0.8, 0.3),
    }


def _make_routing(
    rows: pl.DataFrame, score: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return decisions [N, L, M]: likelier the higher the score, the first layer the busiest."""
    eager = 0.06 + 0.8 * np.clip(score / 12, 0, 1)
    weight = np.array([[1.0, 0.5], [0.6, 0.25]])
    return generator.random((rows.height, LAYERS, 2)) < eager[:, None, None] * weight


def _routing_frame(rows: pl.DataFrame, activity: np.ndarray) -> pl.DataFrame:
    judged = (rows["slice"] == "judged").to_numpy()
    active = activity[judged]
    steps, width = active.shape[0], LAYERS * len(SUBMODULES)
    kept = rows.filter(judged)
    index = np.repeat(np.arange(steps), width)
    return kept[index].select(
        "entity",
        "time",
        layer=pl.Series(np.tile(np.repeat(np.arange(LAYERS), 2), steps), dtype=pl.Int16),
        submodule=pl.Series(list(SUBMODULES) * (LAYERS * steps), dtype=pl.Enum(SUBMODULES)),
        active=pl.Series(active.ravel()),
        confidence=pl.Series(np.full(steps * width, 0.9), dtype=pl.Float32),
    )


def _make_latency(
    rows: pl.DataFrame, arm: str, activity: np.ndarray, plan: Plan, generator: np.random.Generator
) -> pl.DataFrame:
    queries = plan.replay.single_stream_events
    judged = np.flatnonzero((rows["slice"] == "judged").to_numpy())[:queries]
    share = activity[judged].mean(axis=(1, 2))
    mean = {"candidate": 0.35 + 0.5 * share, "baseline": np.full(queries, 0.05)}
    passes = []
    for visit in range(plan.replay.passes):
        service = (
            1e6 * mean.get(arm, np.full(queries, 1.1)) * generator.gamma(400, 1 / 400, queries)
        )
        passes.append(
            rows[judged].select(
                "entity",
                "time",
                arm=pl.lit(arm),
                scenario=pl.lit("single_stream"),
                **{"pass": pl.lit(visit, dtype=pl.Int32)},
                query=pl.int_range(pl.len(), dtype=pl.Int64),
                service_ns=pl.Series(service.astype(np.int64)),
                active_share=pl.Series(share if arm == "candidate" else [None] * queries).cast(
                    pl.Float32
                ),
            )
        )
    return pl.concat(passes)


def _write_card(
    run: RunFolder,
    plan: Plan,
    dataset: PreparedDataset,
    arms: list[str],
    activity: np.ndarray | None,
) -> None:
    rates = None if activity is None else activity.mean(axis=0)
    legs: dict[str, dict[str, Any]] = {}
    for arm in arms:
        routes = arm == "candidate" and rates is not None
        speed = {"candidate": 42_000.0, "baseline": 900_000.0}.get(arm, 18_000.0)
        common = {
            "state_bytes_per_entity": 6_000 if arm == "candidate" else 9_000,
            "weight_bytes": 210_000,
            "score_difference": 3e-7,
        }
        legs[f"{arm}/offline"] = common | {
            "rows": 30_000,
            "seconds": 30_000 / speed,
            "rows_per_second": speed,
            "peak_rss_bytes": 600_000_000,
            "baseline_rss_bytes": 400_000_000,
            "peak_cuda_bytes": None,
            "activation_rate": float(rates.mean()) if routes and rates is not None else None,
            "submodule_rates": {
                f"layer {layer} {name}": float(rates[layer, place])
                for layer in range(LAYERS)
                for place, name in enumerate(SUBMODULES)
            }
            if routes and rates is not None
            else {},
        }
        legs[f"{arm}/single_stream"] = common | {"rows": 1000}
    card = ReplayCard(
        plan_digest=plan.digest,
        order=[f"{arm}/offline" for arm in arms],
        legs=legs,
        models={},
        dataset=describe_dataset(dataset.card, ENTITIES),
        environment={"cpu": "Invented CPU", "threads": 1, "gpu": None, "torch": torch.__version__},
    )
    write_json(run.replay / "replay.json", card.to_dict())
