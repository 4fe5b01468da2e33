"""A first plan for any log: what is guessed, what is asked, and that the plan works as it is."""

import gzip
import json
import math
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.log_cases import MINUTE, START, plant, write
from typer.testing import CliRunner

from sma_pilot.cli import app
from sma_pilot.errors import LogError
from sma_pilot.init import init_plan
from sma_pilot.init.borders import choose_borders
from sma_pilot.init.plan_text import quoted
from sma_pilot.logs.checks import check_log
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import Plan, parse_plan


def _init(folder: Path, *names: str, **options: Any) -> Plan:
    """Write a plan, and hold that it can be read and checked without an error."""
    text = init_plan([Path(name) for name in names], data_dir=folder, **options)
    plan = parse_plan(text, "written")
    report = check_log(plan, folder)
    assert not [f for f in report.findings if f.level == "error"], report.findings
    return plan


def _log(**columns: Any) -> pl.DataFrame:
    rows = 400
    random = np.random.default_rng(0)
    usual = {"timestamp": START + MINUTE * np.arange(rows), "x": random.normal(size=rows)}
    return pl.DataFrame({**usual, **columns})


def test_the_parts_of_a_log_are_found(tmp_path: Path) -> None:
    plant(rows=1500).write_parquet(tmp_path / "plant.parquet")
    plan = _init(tmp_path, "plant.parquet")
    log = plan.log
    assert (log.time, log.entity, log.label) == ("t", "machine", "fault")
    assert (log.numeric, log.categorical) == (("x", "y"), ("mode",))
    assert (log.period, log.max_gap) == (timedelta(minutes=1), timedelta(minutes=30))
    assert log.files == ("plant.parquet",)
    assert plan.name == "plant"


def test_the_plan_prepares(tmp_path: Path) -> None:
    plant().write_parquet(tmp_path / "plant.parquet")
    plan = _init(tmp_path, "plant.parquet")
    prepare(plan, tmp_path, tmp_path / "out")


def test_a_log_of_months(tmp_path: Path) -> None:
    _log(timestamp=START + 30 * 24 * 60 * MINUTE * np.arange(400)).write_parquet(
        tmp_path / "a.parquet"
    )
    assert _init(tmp_path, "a.parquet").log.period == timedelta(days=30)


def test_what_is_named_like_an_answer_is_no_channel(tmp_path: Path) -> None:
    log = _log(anomaly=[-1, 1] * 200, label=["ok", "weird"] * 200, failure_type=[1, 2] * 200)
    log.write_parquet(tmp_path / "a.parquet")
    text = init_plan([Path("a.parquet")], data_dir=tmp_path)
    assert tomllib.loads(text)["log"]["numeric"] == ["x", "failure_type"]
    assert '# Left out: "anomaly" is named like an answer' in text
    assert '# Left out: "label" is named like an answer' in text


def test_a_silence_that_empties_a_slice_is_told(tmp_path: Path) -> None:
    time = START + MINUTE * np.where(np.arange(400) < 200, 0, 10**5) + MINUTE * np.arange(400)
    _log(timestamp=time).write_parquet(tmp_path / "a.parquet")
    assert "EMPTY" in init_plan([Path("a.parquet")], data_dir=tmp_path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "ndjson", "parquet"])
def test_every_format(tmp_path: Path, ending: str) -> None:
    log = plant().with_columns(pl.from_epoch("t", time_unit="ns").dt.to_string("iso:strict"))
    path = tmp_path / f"plant.{ending}"
    match ending:
        case "csv.gz":
            path.write_bytes(gzip.compress(log.write_csv().encode()))
        case "tsv":
            log.write_csv(path, separator="\t")
        case _:
            getattr(log, f"write_{ending}")(path)
    log = _init(tmp_path, path.name).log
    assert (log.time, log.entity, log.label) == ("t", "machine", "fault")
    assert (log.numeric, log.categorical) == (("x", "y"), ("mode",))


@pytest.mark.parametrize(
    ("step", "period"),
    [(1, "1ms"), (250, "250ms"), (1000, "1s"), (90_000, "90s"), (3_600_000, "1h")],
)
def test_the_period_is_the_usual_step(tmp_path: Path, step: int, period: str) -> None:
    time = START + step * 10**6 * np.arange(400)
    _log(timestamp=time).write_csv(tmp_path / "a.csv")
    plan = _init(tmp_path, "a.csv")
    assert plan.model_dump(mode="json")["log"]["period"] == period


NASTY = [
    'a"b',
    "c\\d",
    "temp [C]",
    "^e.*$",
    "*",
    "line\nbreak",
    "\x7f",
    "# [x]\n[y]",
    "µ 温度",
    "'",
    "=",
]


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_nasty_names_survive(tmp_path: Path, ending: str) -> None:
    random = np.random.default_rng(0)
    log = _log(**{name: random.normal(size=400) for name in NASTY})
    log = log.with_columns(pl.lit(None).alias('empty "\n[log]\nfiles = 3'))
    getattr(log, f"write_{ending}")(tmp_path / f"it's [1] *.{ending}")
    plan = _init(tmp_path, f"it's [1] *.{ending}")
    assert set(plan.log.numeric) == {"x", *NASTY}
    assert plan.log.files == (f"it's [1] *.{ending}",)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_quoted_on_one_line(text: str) -> None:
    line = f"x = {quoted(text)}"
    assert tomllib.loads(line)["x"] == text
    assert "\n" not in line


def test_a_comment_cannot_be_left(tmp_path: Path) -> None:
    left_out = "\nname = 3\n[log]\n"
    log = _log(**{left_out: [f"text {i}" for i in range(400)], "0 or 1\n": [0, 1] * 200})
    log.write_parquet(tmp_path / "a.parquet")
    text = init_plan([Path("a.parquet")], data_dir=tmp_path)
    assert tomllib.loads(text)["log"]["numeric"] == ["x", "0 or 1\n"]
    assert "Left out: " in text
    assert "hold 0 and 1 only" in text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"date": START + np.arange(400)}, "the clock: 'timestamp', 'date'; name it with --time"),
        (
            {"host": ["a", "b"] * 200, "service": ["c", "d"] * 200},
            "names the machine: 'host', 'service'; name it with --entity",
        ),
        (
            {"anomaly": [0, 1] * 200, "failure": [1, 0] * 200},
            "marks failures: 'anomaly', 'failure'; name it with --label",
        ),
        ({"timestamp": range(400)}, "no column holds timestamps; .*--time"),
        ({"x": ["a", "b"] * 200}, "no numeric channel"),
        (
            {"timestamp": START + MINUTE * (np.arange(400) // 8)},
            "rows repeat an earlier row's time.*--entity",
        ),
        ({"failure": [0] * 398 + [1] * 2, "timestamp": [START] * 400}, "--entity|runs from"),
    ],
)
def test_what_cannot_be_decided_is_asked(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    _log(**columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(LogError, match=f"(?s){message}"):
        init_plan([Path("a.parquet")], data_dir=tmp_path)


@pytest.mark.parametrize("name", ["app.log", "app.txt", "a\x1b[31m.log"])
def test_of_plain_lines_it_says_what_to_write_by_hand(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("2024-01-01 00:00:00 INFO served /a\n")
    with pytest.raises(LogError, match=r"plain lines.* log\.lines\.pattern .*check") as told:
        _init(tmp_path, name)
    assert "\x1b" not in str(told.value)


def test_options_settle_it(tmp_path: Path) -> None:
    columns = {
        "date": START + 10**9 * np.arange(400),
        "host": ["a", "b"] * 200,
        "service": ["c", "d"] * 200,
        "anomaly": [0] * 300 + [1] * 100,
        "failure": [1, 0] * 200,
    }
    _log(**columns).write_parquet(tmp_path / "a.parquet")
    log = _init(tmp_path, "a.parquet", time="date", entity="service", label="failure").log
    assert (log.time, log.entity, log.label) == ("date", "service", "failure")
    log = _init(tmp_path, "a.parquet", time="date", entity="", label="").log
    assert (log.entity, log.label) == (None, None)
    assert "host" in log.categorical
    with pytest.raises(LogError, match="--time: no column 'Date' in every file"):
        init_plan([Path("a.parquet")], data_dir=tmp_path, time="Date")


def test_the_machine_is_found_by_what_it_explains(tmp_path: Path) -> None:
    log = plant(machines=8).rename({"machine": "whatever"})
    log.write_parquet(tmp_path / "a.parquet")
    assert _init(tmp_path, "a.parquet").log.entity == "whatever"


def test_a_channel_that_is_the_answer_is_left_out(tmp_path: Path) -> None:
    plant().with_columns(alarm_lamp=pl.col("fault") * 2.0).write_parquet(tmp_path / "a.parquet")
    text = init_plan([Path("a.parquet")], data_dir=tmp_path)
    assert "alarm_lamp" not in tomllib.loads(text)["log"]["numeric"]
    assert '# Left out: "alarm_lamp" tells labelled events' in text


def test_text_and_empty_columns_are_left_out_with_the_reason(tmp_path: Path) -> None:
    log = _log(
        message=[f"free text {i}" for i in range(400)],
        nothing=pl.Series([None] * 400, dtype=pl.Float64),
        split=["train"] * 200 + ["test"] * 200,
        steady=["on"] * 400,
        nested=[[1]] * 400,
    )
    log.write_parquet(tmp_path / "a.parquet")
    text = init_plan([Path("a.parquet")], data_dir=tmp_path)
    plan = tomllib.loads(text)["log"]
    assert plan["numeric"] == ["x"]
    assert "categorical" not in plan
    for name in ("message", "nothing", "split", "steady", "nested"):
        assert f'# Left out: "{name}"' in text


def test_a_late_text_makes_a_column_no_number(tmp_path: Path) -> None:
    cells = ["1.5"] * 4999 + ["broken"]
    rows = "".join(f"{START // 10**9 + 60 * i},{i},{c}\n" for i, c in enumerate(cells))
    write(tmp_path / "a.csv", "time,x,y\n" + rows)
    assert _init(tmp_path, "a.csv").log.numeric == ("x",)


def test_paths_are_relative_to_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "logs").mkdir(parents=True)
    elsewhere.mkdir()
    for i in range(3):
        _log(timestamp=START + MINUTE * (400 * i + np.arange(400))).write_csv(
            data / "logs" / f"{i}.csv"
        )
    (data / "logs" / ".hidden.csv").write_text("junk")
    (data / "logs" / ".git").mkdir()
    (data / "logs" / ".git" / "x.csv").write_text("junk")
    (data / "logs" / "readme.txt").write_text("junk")
    monkeypatch.chdir(elsewhere)
    names = tuple(f"logs/{i}.csv" for i in range(3))
    # Found from here, from the data folder, as a folder, as a pattern; written down the same.
    for path in ("../data/logs", "logs", "logs/*.csv", "../data/logs/?.csv", str(data / "logs")):
        assert _init(data, path).log.files == names
    # A file outside of the data folder keeps its whole path.
    (elsewhere / "x.csv").write_bytes((data / "logs" / "0.csv").read_bytes())
    assert _init(data, "x.csv").log.files == (str(elsewhere / "x.csv"),)
    monkeypatch.chdir(data)
    plan = parse_plan(init_plan([Path("logs/0.csv")]), "written")
    assert plan.log.files == ("logs/0.csv",)


def test_many_files_become_a_pattern_if_it_says_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "lo[g]s"
    folder.mkdir()
    for i in range(25):
        _log(timestamp=START + MINUTE * (400 * i + np.arange(400))).write_parquet(
            folder / f"{i:02}.parquet"
        )
    assert _init(tmp_path, "lo[g]s").log.files == ("lo[[]g]s/*.parquet",)
    some = [f"lo[g]s/{i:02}.parquet" for i in range(24)]
    assert _init(tmp_path, *some).log.files == tuple(some)


@pytest.mark.parametrize("given", ["none.csv", "none*", "empty", "**a/["])
def test_paths_that_lead_nowhere(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match=r"no such file|is no pattern"):
        init_plan([Path(given)], data_dir=tmp_path / "empty")


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([], (0.6, 0.8)),
        (np.linspace(0, 1, 200), (0.6, 0.8)),
        ([0.81, 0.9], (0.6, 0.8)),
        (np.linspace(0.5, 0.9, 60), (0.525, 0.7)),
        (np.linspace(0.36, 0.6, 40), (0.338, 0.45)),
        ([0.1, 0.2], (0.6, 0.8)),
        ([0.1, 0.2, 0.2, 0.5], (0.375, 0.5)),
    ],
)
def test_borders_go_where_the_events_are(shares: Any, expected: tuple[float, float]) -> None:
    events = np.array([round(share * 10**6) for share in shares], dtype=np.int64)
    borders = choose_borders(events, 0, 10**6)
    assert borders == expected
    if len(events) and events[-1] > 300_000:
        held = int((events >= borders[1] * 10**6).sum())
        assert held >= min(30, math.ceil(len(events) / 2)) or borders == (0.375, 0.5)


def test_events_of_the_middle_are_judged(tmp_path: Path) -> None:
    label = np.zeros(3000, int)
    label[1500:2200:50] = 1
    random = np.random.default_rng(0)
    log = {"time": START + MINUTE * np.arange(3000), "x": random.normal(size=3000), "label": label}
    pl.DataFrame(log).write_parquet(tmp_path / "a.parquet")
    plan = _init(tmp_path, "a.parquet")
    figures = check_log(plan, tmp_path).to_dict()["figures"]
    assert figures["slices"]["judged"]["events"] >= 7


def test_the_command_writes_once(tmp_path: Path) -> None:
    plant().write_csv(tmp_path / "a.csv")
    plan = tmp_path / "pilot.toml"
    arguments = ["init", str(tmp_path / "a.csv"), "--data", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--plan", str(plan)])
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    written = plan.read_text(encoding="utf-8")
    again = CliRunner().invoke(app, [*arguments, "--plan", str(plan)])
    assert again.exit_code != 0
    assert plan.read_text(encoding="utf-8") == written
    printed = CliRunner().invoke(app, [*arguments, "--plan", "-"])
    assert printed.stdout == written
    as_json = CliRunner().invoke(app, [*arguments, "--plan", "-", "--json"])
    assert json.loads(as_json.stdout)["plan"] == written
    checked = CliRunner().invoke(app, ["check", str(plan), "--data", str(tmp_path)])
    assert checked.exit_code == 0, checked.output


def test_an_error_leaves_no_plan(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "a,b\n1,2\n")
    plan = tmp_path / "pilot.toml"
    done = CliRunner().invoke(app, ["init", str(tmp_path / "a.csv"), "--plan", str(plan)])
    assert done.exit_code != 0
    assert not plan.exists()


def test_a_public_log(real_logs: Path) -> None:
    plan = _init(real_logs, "smd")
    assert (plan.log.time, plan.log.entity, plan.log.label) == ("timestamp", "entity", "anomaly")
    assert len(plan.log.numeric) == 38
    assert plan.log.categorical == ()
