"""The demo from log to verdict, small: end to end, by its command, and killed half way."""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.pilot.demo_cases import SMALL_DAYS, demo_plan, small_demo_plan, small_demo_toml
from tests.pilot.replay_cases import quiet
from tests.slow import slow
from typer.testing import CliRunner
from typer.testing import Result as Printed

import sma_pilot.demo
from sma_pilot import pilot
from sma_pilot.cli import app
from sma_pilot.demo import VERSION, make_demo_log
from sma_pilot.judge.result import Result
from sma_pilot.report.evidence import Evidence
from sma_pilot.run_folder import RunFolder

KILLED_IN_FIT = """
import os, signal, sys
from pathlib import Path
from sma_pilot import pilot
from sma_pilot.run_folder import RunFolder
from tests.pilot.demo_cases import small_demo_plan

def kill(stage, done, total):
    if stage == "fit candidate" and done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

plan, data, run = small_demo_plan(), Path(sys.argv[1]), RunFolder(Path(sys.argv[2]))
pilot.prepare(plan, data, run, kill)
pilot.fit(plan, data, run, kill)
"""


def finish(data: Path, run: RunFolder) -> Result:
    plan = small_demo_plan()
    pilot.prepare(plan, data, run, quiet)
    pilot.fit(plan, data, run, quiet)
    pilot.replay(plan, run, quiet)
    return pilot.judge(plan, run)


def scores(run: RunFolder) -> pl.DataFrame:
    return pl.read_parquet(run.replay / "scores" / "*.parquet").sort("arm", "entity", "time")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a small demo's log and pilot, with the command made small, too."""
    small = functools.partial(make_demo_log, days=SMALL_DAYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sma_pilot.demo, "make_demo_log", small)
        patch.setattr(sma_pilot.demo, "demo_plan_toml", small_demo_toml)
        patch.setattr(pilot, "track", lambda run, store: "not tracked here")
        yield tmp_path_factory.mktemp("demo") / "runs"


@pytest.fixture(scope="module")
def demonstrated(out: Path) -> Printed:
    """What the command prints and writes."""
    return CliRunner().invoke(app, ["demo", "--out", str(out), "--json"])


@pytest.fixture(scope="module")
def data(out: Path, demonstrated: Printed) -> Path:
    """The log that it made."""
    return out / "demo-log"


@pytest.fixture(scope="module")
def undisturbed(out: Path, demonstrated: Printed) -> tuple[RunFolder, Result]:
    """Its pilot, that nothing stopped."""
    assert demonstrated.exit_code == 0, demonstrated.stderr
    run = RunFolder.create(small_demo_plan(), out)
    return run, Result.from_dict(json.loads(run.result.read_text(encoding="utf-8")))


def test_the_plan_names_its_log_and_its_made_up_price():
    plan = demo_plan()
    assert f"SYNTHETIC plant log (generator version {VERSION})" in plan.description
    assert plan.money is not None
    assert "MADE UP" in plan.money.price_source
    assert [arm.kind for arm in plan.named_arms().values()] == ["dense_twin", "sma", "logistic"]


def test_a_small_demo_reaches_a_verdict(undisturbed: tuple[RunFolder, Result]):
    run, result = undisturbed
    assert result.verdict in ("go", "no-go", "inconclusive")
    kpis = {kpi.name: kpi.value for kpi in result.kpis}
    assert (kpis["quality/events"] or 0) >= 10
    assert kpis["quality/loss_event_recall"] is not None
    assert kpis["latency/ratio_p90"] is not None
    assert 0 < (kpis["routing/activation_rate"] or 0) < 1
    assert kpis["cost/candidate_single_stream_per_year"] is not None
    assert pilot.report(run).stat().st_size > 10_000


def test_the_report_shows_routing_where_an_alarm_is_due(undisturbed: tuple[RunFolder, Result]):
    """For alarms that is the horizon before a failure, in which no row is labelled."""
    run, _ = undisturbed
    horizon = pl.duration(hours=3)
    time = pl.col("time").cast(pl.Datetime("ns"))
    judged = (
        pl.read_parquet(run.replay / "scores" / "part-candidate-0*.parquet")
        .filter(pl.col("slice") == "judged")
        .select(pl.col("entity").cast(pl.String), time, "label")
        .sort("time")
    )
    failed = judged.filter(pl.col("label") > 0).select("entity", "time", next="time")
    due = judged.filter(pl.col("label") == 0).join_asof(
        failed, on="time", by="entity", strategy="forward", check_sortedness=False
    )
    due = due.filter(pl.col("next") - pl.col("time") <= horizon)
    routing = pl.read_parquet(run.replay / "routing" / "*.parquet").with_columns(
        pl.col("entity", "submodule").cast(pl.String), time
    )
    expected = (
        routing.join(due, on=["entity", "time"], how="semi")
        .group_by("layer", "submodule")
        .agg(pl.col("active").mean())
        .sort("layer", "submodule")["active"]
    )
    shown = [rate for _, _, rate in Evidence.read(run.path).routing_rates()]
    assert shown == pytest.approx(expected.to_list())
    page = pilot.report(run).read_text(encoding="utf-8")
    assert "steps within the horizon before an event" in page
    assert "its horizon" in page


@slow
def test_killed_in_a_fit_it_goes_on_to_the_same_scores(
    data: Path, undisturbed: tuple[RunFolder, Result], tmp_path: Path
):
    run = RunFolder.create(small_demo_plan(), tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_FIT, str(data), str(run.path)],
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (run.models / "incumbent" / "model.json").exists()
    assert (run.models / "candidate" / "progress").exists()
    assert not (run.models / "candidate" / "model.json").exists()
    result = finish(data, run)
    before, after = scores(undisturbed[0]), scores(run)
    assert_frame_equal(before, after, check_exact=True)
    quality = [
        {kpi.name: kpi for kpi in each.kpis if kpi.name.startswith("quality/")}
        for each in (undisturbed[1], result)
    ]
    assert quality[0] == quality[1]


def test_the_command_makes_the_log_and_tells_that_it_is_synthetic(out: Path, demonstrated: Printed):
    assert demonstrated.exit_code == 0, demonstrated.stderr
    assert json.loads(demonstrated.stdout)["verdict"] in ("go", "no-go", "inconclusive")
    assert "SYNTHETIC" in demonstrated.stderr.splitlines()[0]
    assert (out / "demo-log" / "pilot.toml").read_text() == small_demo_toml()

    again = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert again.exit_code == 0, again.stderr
    assert "fit candidate: 1 of" not in again.stderr  # what is whole is not made again
    assert "verdict:" in again.stdout
    assert f"sma-pilot ui --out {out}" in again.stderr
