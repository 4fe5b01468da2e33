"""Each rule of the check fires on a log that has the fault, and is silent on one that has not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.pilot.log_cases import MINUTE, PLANT, START, make_plan, plant, write
from typer.testing import CliRunner

from sma_pilot.cli import app
from sma_pilot.logs.check_report import CheckReport
from sma_pilot.logs.checks import check_log
from sma_pilot.logs.leakage import RepeatTaker, area_under_curve

EVENTS_ENOUGH = {"loss_limit": 0.9, "minimum_events": 1, "false_alarms_per_day": 50.0}


def _check(folder: Path, log: pl.DataFrame, **changes: Any) -> CheckReport:
    log.write_parquet(folder / "a.parquet")
    plan = make_plan("a.parquet", **{"quality": EVENTS_ENOUGH, **PLANT, **changes})
    return check_log(plan, folder)


def _found(report: CheckReport, level: str, topic: str) -> str:
    return "\n".join(f.message for f in report.findings if (f.level, f.topic) == (level, topic))


def test_a_sound_log_has_no_warning(tmp_path: Path) -> None:
    report = _check(tmp_path, plant())
    assert report.summary == "no errors, no warnings", report.findings
    assert "1,800 rows in 1 file: 2 numeric channels, 1 categorical, 3 entities" in _found(
        report, "info", "schema"
    )
    assert "The usual step between two rows of an entity is 1 min" in _found(
        report, "info", "clock"
    )
    assert "3 silences longer than log.max_gap; the longest lasts 46 min" in _found(
        report, "info", "clock"
    )


def test_figures_are_those_of_the_log(tmp_path: Path) -> None:
    log = plant()
    figures = _check(tmp_path, log).to_dict()["figures"]
    train = log.filter(pl.col("t") < START + round(0.6 * 644 * MINUTE))
    assert figures["slices"]["train"]["rows"] == train.height
    assert figures["slices"]["train"]["event_rows"] == train["fault"].sum()
    channel = figures["channels"][0]
    assert channel["channel"] == "x"
    assert channel["missing"]["train"] == pytest.approx(train["x"].null_count() / train.height)
    assert channel["mean"] == pytest.approx(train["x"].mean())
    assert (channel["least"], channel["greatest"]) == (train["x"].min(), train["x"].max())
    own = figures["entities"][1]
    assert own["entity"] == "m1"
    assert own["rows"]["train"] == train.filter(pl.col("machine") == "m1").height
    assert sum(own["events"].values()) == 6
    assert figures["usual_step_ns"] == MINUTE
    assert figures["channels"][2]["values"] == 3


X, T, FAULT = pl.col("x"), pl.col("t"), pl.col("fault")
LATE = pl.col("t") > START + 500 * MINUTE
CASES: dict[str, tuple[dict[str, pl.Expr], dict[str, Any], str, str, str]] = {
    "answer": ({"y": FAULT * 3.0 + 1}, {}, "error", "leakage", "Channel 'y' is the answer"),
    "answer in words": (
        {"mode": pl.when(FAULT == 1).then(pl.lit("stop")).otherwise(pl.lit("run"))},
        {},
        "error",
        "leakage",
        "Channel 'mode' is the answer",
    ),
    "nearly the answer": ({"y": FAULT * 1e4 - pl.col("y")}, {}, "warning", "leakage", "'y' nearly"),
    "nearly, downwards": ({"y": FAULT * -1e4 + pl.col("y")}, {}, "warning", "leakage", "'y' near"),
    "there only in events": (
        {"y": pl.when(FAULT == 1).then(pl.col("y"))},
        {"slices": {"validation_from": 0.6, "judged_from": 0.8}},
        "warning",
        "leakage",
        "'y' nearly is the answer: whether it has a value",
    ),
    "the future": (
        {"y": (FAULT.shift(-4).over("machine") > FAULT) + 1e-9 * pl.col("y")},
        {"horizon": "4m"},
        "warning",
        "leakage",
        "its value alone tells an event within task.horizon from normal rows",
    ),
    "a step off": ({}, {"period": "5m"}, "warning", "clock", "log.period is 5m, but the usual"),
    "a gap too short": ({}, {"max_gap": "30s"}, "error", "clock", "log.max_gap is 30s"),
    "a wrong clock": (
        {"t": pl.when(LATE).then(T + 10**5 * MINUTE).otherwise(T)},
        {},
        "warning",
        "clock",
        "is a clock wrong",
    ),
    "a far border": (
        {"t": pl.when(LATE).then(T + 10**5 * MINUTE).otherwise(T)},
        {},
        "error",
        "slices",
        "No row falls into the validation slice",
    ),
    "a constant": ({"y": pl.lit(4.0)}, {}, "info", "channels", "Constant in training: y."),
    "a waking channel": (
        {"y": pl.when(LATE).then(pl.col("y")).otherwise(4.0)},
        {},
        "warning",
        "channels",
        "They move later: y",
    ),
    "an empty channel": (
        {"y": pl.lit(None, pl.Float64)},
        {},
        "warning",
        "channels",
        "Without a value in training: y",
    ),
    "a sparse channel": (
        {"y": pl.when(T // MINUTE % 4 == 0).then(pl.col("y"))},
        {},
        "warning",
        "channels",
        "Mostly missing in training: y (75 %)",
    ),
    "infinite values": (
        {"y": pl.when(T < START + 3 * MINUTE).then(np.inf).otherwise(pl.col("y"))},
        {},
        "warning",
        "channels",
        "taken as missing: y (9)",
    ),
    "a faulty sensor": (
        {
            "y": pl.when(T.is_first_distinct()).then(pl.col("y")).otherwise(pl.col("y"))
            + pl.when((T == START) & (pl.col("machine") == "m0")).then(1e9).otherwise(0.0)
        },
        {"machines": 9},
        "warning",
        "channels",
        "Single values far off in training: y",
    ),
    "new words": (
        {"mode": pl.when(LATE).then(pl.lit("new")).otherwise(pl.col("mode"))},
        {},
        "warning",
        "channels",
        "rows hold a value that training has not ('new')",
    ),
    "one word": ({"mode": pl.lit("run")}, {}, "warning", "channels", "'mode' has 1 value in"),
    "no events": ({"fault": pl.lit(0)}, {}, "warning", "labels", "'fault' marks no event"),
    "labels reversed": ({"fault": 1 - FAULT}, {}, "warning", "labels", "does 'fault' mean the rev"),
    "no labels": ({}, {"label": None}, "warning", "labels", "quality cannot be judged"),
    "nothing to announce": (
        {"fault": pl.when(LATE).then(FAULT).otherwise(0)},
        {"horizon": "10m"},
        "error",
        "labels",
        "No train row lies within task.horizon",
    ),
    "few events": (
        {},
        {"quality": {"minimum_events": 100}},
        "warning",
        "proof",
        "quality.minimum_events asks for 100: the verdict will be inconclusive",
    ),
    "an ambitious limit": (
        {},
        {"quality": {"loss_limit": 0.01}},
        "warning",
        "proof",
        "cannot be proven with 6 judged events, even if both arms catch the same ones: that "
        "takes 299",
    ),
    "a short validation": (
        {},
        {"quality": {"false_alarms_per_day": 1.0}},
        "warning",
        "proof",
        "allows 0.3 false alarms in all (0.27 entity days at 1 a day)",
    ),
    "a late machine": (
        {"machine": pl.when(LATE).then(pl.lit("new")).otherwise(pl.col("machine"))},
        {},
        "warning",
        "slices",
        "1 entity has no row in the train slice (new)",
    ),
    "machines mixed": (
        {},
        {"entity": None},
        "warning",
        "order",
        "Does the log hold several machines? Then name log.entity",
    ),
}


@pytest.mark.parametrize(
    ("columns", "changes", "level", "topic", "message"), CASES.values(), ids=CASES
)
def test_faults_are_found(
    tmp_path: Path,
    columns: dict[str, pl.Expr],
    changes: dict[str, Any],
    level: str,
    topic: str,
    message: str,
) -> None:
    changes = dict(changes)
    log = plant(machines=changes.pop("machines", 3)).with_columns(**columns)
    report = _check(tmp_path, log, **changes)
    assert message in _found(report, level, topic), report.findings
    if level == "error":
        assert not report.to_dict()["ok"]


def test_late_and_repeated_rows_are_told(tmp_path: Path) -> None:
    report = _check(tmp_path, pl.concat([plant(), plant().head(4)]))
    assert "4 (0.222 %) of the rows are older" in _found(report, "info", "order")
    assert "4 (0.222 %) of the rows repeat a time" in _found(report, "info", "order")


def test_a_channel_named_like_the_label_is_told(tmp_path: Path) -> None:
    log = plant().rename({"x": "fault_in_1h", "y": "defaults"})
    report = _check(tmp_path, log, numeric=("fault_in_1h", "defaults"))
    told = _found(report, "warning", "leakage")
    assert "'fault_in_1h' is named like an answer" in told


def test_old_time_under_new_timestamps_is_told(tmp_path: Path) -> None:
    log = plant(rows=400, machines=2)
    old = log.filter(T < START + 150 * MINUTE).with_columns(T + 460 * MINUTE)
    copied = pl.concat([log, old])
    report = _check(tmp_path, copied, slices={"validation_from": 0.5, "judged_from": 0.75})
    assert "% of the judged rows repeat" in _found(report, "warning", "slices")
    assert _check(tmp_path, log).to_dict()["figures"]["judged_rows_seen_in_training"] == 0


def test_repeats_are_estimated_within_the_memory_given(tmp_path: Path) -> None:
    from sma_pilot.logs.blocks import Block

    random = np.random.default_rng(0)
    rows = random.normal(size=(4000, 3))
    judged = np.concatenate([rows[:2000], random.normal(size=(2000, 3))])
    taker = RepeatTaker(limit=500)
    for number, values in ((0, rows), (2, judged)):
        time, zeros = np.arange(len(values)), np.zeros(len(values), np.int64)
        flags = zeros.astype(bool)
        label = zeros.astype(np.int32)
        taker.add(Block(0, time, label, values, (), zeros + number, flags, flags, zeros[:3]))
    assert taker.share == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("normal", "event", "area"),
    [
        ([0, 1, 2], [3, 4], 1.0),
        ([3, 4], [0, 1, 2], 1.0),
        ([1, 1], [1, 1], 0.5),
        ([0, 2], [1, 3], 0.75),
    ],
)
def test_area_under_the_curve(normal: list[int], event: list[int], area: float) -> None:
    assert area_under_curve(np.array(normal, float), np.array(event, float)) == area


def test_a_log_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,x\n2024-01-01,1\n2024-01-02,abc\n2024-01-06,2\n")
    report = check_log(make_plan("a.csv"), tmp_path)
    assert report.findings[0].level == "error"
    assert "a.csv: column 'x', row 2: 'abc' is no number" in report.findings[0].message
    assert report.to_dict()["figures"] is None
    for page in (report.to_text(), report.to_html()):
        assert "1 error" in page


def test_small_partitions_find_the_same(tmp_path: Path) -> None:
    plant(rows=2500).write_parquet(tmp_path / "a.parquet")
    plan = make_plan("a.parquet", **PLANT, horizon="10m")
    one, other = (check_log(plan, tmp_path, partition_bytes=size) for size in (1, 2**25))
    assert one.findings == other.findings


HOSTILE = "<script>alert(1)</script>\x1b[2J&amp;[bold]"


def test_names_from_the_log_are_escaped(tmp_path: Path) -> None:
    log = (
        plant()
        .rename({"x": HOSTILE})
        .with_columns(
            pl.lit(HOSTILE).alias("machine"),
            pl.when(LATE).then(pl.lit(HOSTILE)).otherwise("mode").alias("mode"),
        )
    )
    report = _check(tmp_path, log, numeric=(HOSTILE, "y"))
    page, text = report.to_html(), report.to_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in text
    assert "[bold]" in text
    assert json.loads(json.dumps(report.to_dict()))["figures"]["channels"][0]["channel"] == HOSTILE


def test_a_page_has_room_for_so_many_rows(tmp_path: Path) -> None:
    machines = [f"m{i:03}" for i in range(60)]
    log = pl.concat(plant(machines=1).with_columns(machine=pl.lit(name)) for name in machines)
    report = _check(tmp_path, log)
    assert "and 20 more rows" in report.to_html()
    assert "and 20 more rows" in report.to_text()
    assert len(report.to_dict()["figures"]["entities"]) == 60


TOML = """
version = 1
name = "case"
log = { files = ["a.csv"], time = "t", numeric = ["x"], period = "1m", max_gap = "1h" }
slices = { validation_from = 0.6, judged_from = 0.8 }
task = { kind = "forecast_anomaly" }
quality = { loss_limit = 0.1, false_alarms_per_day = 1.0, alarm_merge = "5m" }
arms = { incumbent = { kind = "dense_twin" }, candidate = { kind = "sma" } }
"""


@pytest.mark.parametrize(("cell", "code"), [("5", 0), ("abc", 2)])
def test_the_command_prints_and_exits(tmp_path: Path, cell: str, code: int) -> None:
    rows = "".join(f"{START // 10**9 + 60 * i},{cell}\n" for i in range(40))
    write(tmp_path / "a.csv", "t,x\n" + rows)
    plan = tmp_path / "pilot.toml"
    plan.write_text(TOML)
    arguments = ["check", str(plan), "--data", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--html", str(tmp_path / "page.html"), "--json"])
    assert done.exit_code == code, done.output
    document = json.loads(done.stdout)
    assert (document["format"], document["version"]) == ("sma-pilot check", 1)
    assert document["ok"] == (code == 0)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    assert done.stdout.startswith("check of case ")
