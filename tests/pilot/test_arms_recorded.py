"""An incumbent that is not run: its scores and times are those of the log, or there are none."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.pilot.log_cases import MINUTE, PLANT, START, plant
from tests.pilot.replay_cases import quiet
from typer.testing import CliRunner

from sma_core.model import Inputs
from sma_pilot import pilot
from sma_pilot.arms import build_arms
from sma_pilot.cli import app
from sma_pilot.errors import LogError, PlanError, RunError
from sma_pilot.judge.measurements import AlignedSlice
from sma_pilot.plan import Plan
from sma_pilot.planning import plan_pilot
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.run_folder import RunFolder

RECORDED = {"kind": "recorded", "score": "alarm score", "latency": "took"}
PLAN = """
version = 1
name = "recorded"
[log]
files = ["log.parquet"]
time = "t"
entity = "machine"
label = "fault"
numeric = ["x", "y"]
period = "1m"
max_gap = "10m"
[slices]
validation_from = 0.4
judged_from = 0.6
[task]
kind = "forecast_anomaly"
[quality]
loss_limit = 0.3
false_alarms_per_day = 20.0
alarm_merge = "2m"
minimum_events = 2
resamples = 200
[arms.incumbent]
kind = "recorded"
score = "alarm score"
latency = "took"
weight_bytes = 40_000
state_bytes_per_entity = 0
[arms.candidate]
kind = "kmeans"
clusters = 4
[arms.baseline]
kind = "pca"
components = 1
[replay]
single_stream_events = 100
warmup_events = 10
passes = 2
"""


def make_log(folder: Path, **columns: pl.Expr) -> pl.DataFrame:
    """The plant, with what its system of that time said of each row, in ms."""
    rows = plant(400, 2)
    rows = rows.with_columns(
        (pl.col("fault") + pl.col("y") / 100).alias("alarm score"),
        (5.0 + pl.int_range(pl.len()) % 7).alias("took"),
    ).with_columns(**columns)
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(folder / "log.parquet")
    return rows


def make_plan(arm: dict, **changes) -> Plan:
    tables = {
        "version": 1,
        "name": "case",
        "log": {"files": ["log.parquet"], "time": "t", "period": "1m", "max_gap": "10m"} | PLANT,
        "slices": {"validation_from": 0.4, "judged_from": 0.6},
        "task": {"kind": "forecast_anomaly"},
        "quality": {"loss_limit": 0.3, "false_alarms_per_day": 20, "alarm_merge": "2m"},
        "arms": {"incumbent": arm, "candidate": {"kind": "kmeans", "clusters": 2}},
        "replay": {"single_stream_events": 50, "warmup_events": 5, "passes": 2},
    }
    return Plan.model_validate(tables | changes)


def measured(plan: Plan, data: Path, root: Path):
    run = RunFolder.create(plan, root)
    pilot.prepare(plan, data, run, quiet)
    pilot.fit(plan, data, run, quiet)
    pilot.replay(plan, run, quiet)
    return run, load_measurements(run.replay)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A run folder that the commands made, one after the other, as typed."""
    root = tmp_path_factory.mktemp("typed")
    rows = make_log(root)
    (root / "pilot.toml").write_text(PLAN)
    for command in ("prepare", "fit", "replay", "judge", "report"):
        options = ["--data", str(root)] if command in ("prepare", "fit") else []
        arguments = [command, str(root / "pilot.toml"), *options, "--out", str(root / "runs")]
        if command == "report":
            (folder,) = (root / "runs").glob("recorded-*")
            arguments = [command, str(folder)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    (folder,) = (root / "runs").glob("recorded-*")
    return RunFolder(folder), rows


def keyed(rows: pl.DataFrame) -> dict[tuple[str, int], dict]:
    return {(row["machine"], row["t"]): row for row in rows.iter_rows(named=True)}


def test_scores_are_those_of_the_log_row_by_row(typed):
    run, rows = typed
    found, known = load_measurements(run.replay), keyed(rows)
    for name in ("validation", "judged"):
        own = found.scores[name]["incumbent"]
        assert own.rows > 50
        for entity, time, score in zip(own.entity, own.time, own.score, strict=True):
            row = known[found.entities[entity], int(time)]
            assert score == np.float32(row["alarm score"])
        AlignedSlice.align(found, name)  # the same rows as the arms that ran


def test_times_are_those_of_the_events_that_the_others_got(typed):
    run, rows = typed
    known = keyed(rows)
    frames = {
        arm: pl.read_parquet(run.replay / "latency" / f"part-{arm}-000-00000.parquet")
        for arm in ("incumbent", "candidate")
    }
    assert frames["incumbent"].height == 100
    keys = ["query", "entity", "time"]
    assert frames["incumbent"][keys].equals(frames["candidate"][keys])
    for _, entity, time, service in frames["incumbent"][[*keys, "service_ns"]].iter_rows():
        assert service == round(known[entity, time]["took"] * 1e6)


def test_what_nobody_metered_is_not_measured_and_the_candidate_runs_twice(typed):
    run, _ = typed
    card = json.loads((run.replay / "replay.json").read_text())
    assert "candidate_again/offline" in card["order"]
    assert not any(leg.startswith("incumbent_again") for leg in card["order"])
    leg = card["legs"]["incumbent/offline"]
    for name in ("rows_per_second", "peak_rss_bytes", "energy_joules"):
        assert leg[name] is None
    result = json.loads(run.result.read_text())
    kpis = {kpi["name"]: kpi for kpi in result["kpis"]}
    assert kpis["throughput/incumbent_rows_per_second"]["value"] is None
    assert kpis["noise/latency_ratio_p95"]["note"].startswith("The candidate against itself")
    assert kpis["latency/incumbent_mean_ms"]["value"] == pytest.approx(8.0, abs=0.5)
    assert kpis["quality/unscored_by_incumbent"]["status"] == "pass"
    assert kpis["memory/ratio"]["value"] is not None
    words = " ".join(result["reasons"][i]["text"] for i in range(len(result["reasons"])))
    assert "those that the log recorded, on whatever machine that was" in words
    assert "recorded scores" in run.report.read_text() or "recorded" in run.report.read_text()


def test_a_row_without_a_score_or_a_time_is_missing_and_proves_nothing(tmp_path):
    gaps = {
        "alarm score": pl.when(pl.col("t") % (20 * MINUTE) != 0).then(pl.col("alarm score")),
        "took": pl.when(pl.col("t") % (2 * MINUTE) == 0).then(pl.col("took")),
    }
    make_log(tmp_path, **gaps)
    plan = make_plan(RECORDED)
    run, found = measured(plan, tmp_path, tmp_path / "runs")
    own = found.scores["judged"]["incumbent"]
    assert np.array_equal(np.isnan(own.score), own.time % (20 * MINUTE) == 0)
    assert 0 < found.latency["incumbent"].query.size < found.latency["candidate"].query.size
    result = pilot.judge(plan, run)
    gate = next(kpi for kpi in result.kpis if kpi.name == "quality/unscored_by_incumbent")
    assert (gate.status, gate.value) == ("inconclusive", int(np.isnan(own.score).sum()))
    assert result.verdict != "go"


def test_without_a_column_of_times_latency_is_not_measured(tmp_path):
    make_log(tmp_path)
    plan = make_plan({"kind": "recorded", "score": "alarm score"})
    run, found = measured(plan, tmp_path, tmp_path / "runs")
    assert "incumbent" not in found.latency
    result = pilot.judge(plan, run)
    gate = next(kpi for kpi in result.kpis if kpi.name == "latency/ratio_p95")
    assert (gate.status, gate.value) == ("inconclusive", None)
    assert any("no service times of: incumbent" in reason.text for reason in result.reasons)
    assert result.verdict != "go"


def test_scores_may_lie_in_files_of_their_own_in_any_order(tmp_path):
    rows = make_log(tmp_path)
    own = rows.select("t", "machine", pl.col("alarm score").alias("s")).sample(
        fraction=1.0, shuffle=True, seed=0
    )
    # What is there twice: the last stands, as in the log.
    older = own.head(50).with_columns(s=pl.lit(99.0))
    pl.concat([older, own.filter(pl.col("t") > START + 30 * MINUTE)]).write_csv(
        tmp_path / "scores.csv"
    )
    plan = make_plan({"kind": "recorded", "score": "s", "files": ["scores.csv"]})
    _, found = measured(plan, tmp_path, tmp_path / "runs")
    known, judged = keyed(rows), found.scores["judged"]["incumbent"]
    for entity, time, score in zip(judged.entity, judged.time, judged.score, strict=True):
        assert score == pytest.approx(known[found.entities[entity], int(time)]["alarm score"])


def test_the_smallest_provable_loss_is_told_of_a_recorded_incumbent(tmp_path):
    make_log(tmp_path)
    plan = make_plan(RECORDED)
    run = RunFolder.create(plan, tmp_path / "runs")
    (told,) = plan_pilot(plan, tmp_path, quiet, run=run)
    assert told.known.evidence is not None
    assert told.known.evidence.events > 0


def refused(tmp_path: Path, plan: Plan) -> None:
    run = RunFolder.create(plan, tmp_path / "runs")
    pilot.prepare(plan, tmp_path, run, quiet)
    pilot.fit(plan, tmp_path, run, quiet)


@pytest.mark.parametrize(
    ("arm", "columns", "error", "message"),
    [
        ({"score": "alarm scor"}, {}, PlanError, r"\.score: .*did you mean 'alarm score'"),
        ({"latency": "late"}, {}, PlanError, r"\.latency: log\.parquet has no column 'late'"),
        ({"score": "x"}, {}, PlanError, r"\.score: column 'x' is a channel, too"),
        ({}, {"took": pl.col("took") - 5}, LogError, r"\.latency: .* 0 of entity 'm0' at 2024.*"),
        ({}, {"took": -pl.col("took")}, LogError, "is no time longer than zero"),
        ({}, {"alarm score": pl.lit(float("inf"))}, LogError, r"\.score: .* inf .* is no number"),
        ({}, {"alarm score": pl.lit(None, pl.Float64)}, LogError, "no validation row has a value"),
        ({}, {"alarm score": pl.lit("high")}, LogError, "is no number"),
    ],
)
def test_what_cannot_be_a_score_or_a_time_is_told_by_field_and_row(
    tmp_path, arm, columns, error, message
):
    make_log(tmp_path, **columns)
    with pytest.raises(error, match=message):
        refused(tmp_path, make_plan(RECORDED | arm))
    assert not list(tmp_path.glob("runs/*/models/incumbent/*"))


def test_a_score_of_an_alarm_is_a_probability(tmp_path):
    make_log(tmp_path)
    task = {"kind": "alarm", "horizon": "5m"}
    arms = {"incumbent": RECORDED, "candidate": {"kind": "logistic"}}
    with pytest.raises(LogError, match="outside 0 to 1, as a score of task 'alarm' cannot"):
        refused(tmp_path, make_plan(RECORDED, task=task, arms=arms))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"replay": {"scenarios": ["server"], "server": {}}},
            r"arms\.incumbent: kind 'recorded' is not run, so it has no part in replay\.scenarios",
        ),
        ({"guard": {}}, "a guard has to run the candidate and the incumbent"),
        ({"stages": [{"kind": "shadow"}]}, "a shadow stage has to run"),
    ],
)
def test_where_it_makes_no_sense_the_plan_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(RECORDED, **changes)


def test_it_is_never_asked_for_a_score(tmp_path):
    make_log(tmp_path)
    plan = make_plan(RECORDED)
    refused(tmp_path, plan)
    (folder,) = tmp_path.glob("runs/*/models/incumbent")
    scorer = build_arms(plan)["incumbent"].open(folder)
    with pytest.raises(RunError, match="cannot be asked again"):
        scorer.score(Inputs(torch.zeros(1, 1, 2)), scorer.start(1))
