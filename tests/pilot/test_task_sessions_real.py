"""Sessions of a real log: HDFS blocks, found by counting and told apart by class."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.pilot.replay_cases import START, quiet
from tests.slow import slow

from sma_pilot import pilot
from sma_pilot.plan import Plan
from sma_pilot.run_folder import RunFolder

SECOND = 10**9
SESSIONS = 1500


@pytest.fixture(scope="module")
def blocks(real_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every eighth session of the log, one a second in an order of its own: half are anomalies."""
    source = pl.read_parquet(real_logs / "hdfs" / "sessions_train.parquet")
    order = np.random.default_rng(0).permutation(source.height)[:SESSIONS]
    folder = tmp_path_factory.mktemp("blocks")
    frame = source[order].with_columns(
        time=START + SECOND * pl.int_range(SESSIONS),
        block=pl.format("block {}", pl.int_range(SESSIONS)),
        event=pl.col("Sequence").str.split(" "),
    )
    frame.drop("Sequence").explode("event").write_parquet(folder / "log.parquet")
    return folder


def judged(folder: Path, label: str, **sections: Any) -> dict[str, float | None]:
    document = {
        "version": 1,
        "name": "blocks",
        "log": {
            "files": ["log.parquet"],
            "time": "time",
            "entity": "block",
            label: "label",
            "categorical": ["event"],
            "duplicates": "keep",
            "period": "1s",
            "max_gap": "1h",
        },
        "slices": {"validation_from": 0.5, "judged_from": 0.65},
        "replay": {"single_stream_events": 50, "warmup_events": 5, "passes": 2},
        **sections,
    }
    plan = Plan.model_validate(document)
    run = RunFolder.create(plan, folder / "runs")
    pilot.prepare(plan, folder, run, quiet)
    pilot.fit(plan, folder, run, quiet)
    pilot.replay(plan, run, quiet)
    return {kpi.name: kpi.value for kpi in pilot.judge(plan, run).kpis}


@slow
def test_counting_events_finds_most_anomalies(blocks):
    values = judged(
        blocks,
        "label",
        task={"kind": "session_anomaly"},
        quality={
            "headline": "average_precision",
            "loss_limit": 0.1,
            "false_alarms_per_day": 4000,
            "alarm_merge": "1s",
            "resamples": 200,
        },
        arms={
            "incumbent": {"kind": "count_pca"},
            "candidate": {"kind": "count_pca", "components": 2},
        },
    )
    precision = values["quality/incumbent_average_precision"]
    assert precision is not None
    assert precision > 0.8  # half are anomalies: chance gives 0.5


@slow
def test_classes_of_sessions_are_told_from_their_counts(blocks):
    values = judged(
        blocks,
        "class_label",
        task={"kind": "classification"},
        quality={"headline": "balanced_accuracy", "loss_limit": 0.1, "resamples": 200},
        arms={"incumbent": {"kind": "count_logistic"}, "candidate": {"kind": "logistic"}},
    )
    told, last_row = (
        values[f"quality/{arm}_balanced_accuracy"] for arm in ("incumbent", "candidate")
    )
    assert told is not None
    assert last_row is not None
    assert told > 0.9
    assert told > last_row  # the last event alone knows less
