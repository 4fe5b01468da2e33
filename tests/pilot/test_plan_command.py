"""`sma-pilot plan`: what a log can prove, as typed, and the arithmetic behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pilot.judge_cases import fleet_scores
from tests.pilot.judge_cases import make_plan as fleet_plan
from tests.pilot.log_cases import PLANT, make_plan, plant
from tests.pilot.replay_cases import quiet
from tests.tolerances import TOLERANCES
from typer.testing import CliRunner

from sma_pilot.cli import app
from sma_pilot.errors import PlanError
from sma_pilot.judge.measurements import AlignedSlice, Measurements
from sma_pilot.judge.provability import assess_provability, evidence_of_incumbent
from sma_pilot.judge.provable import Assumption, Evidence, needed_for, smallest_provable_loss
from sma_pilot.judge.statistics import share_upper_bound
from sma_pilot.plan import load_plan
from sma_pilot.planning import plan_pilot

CLOSE = TOLERANCES["float64"].relative
ALPHA = 0.05
ASSUMED = Assumption(discordance=0.05, alpha=ALPHA)
EVENTS = {"minimum_events": 1, "alarm_merge": "1m"}

PLAN = """
version = 1
name = "plant"
[log]
files = ["a.parquet"]
time = "t"
entity = "machine"
label = "fault"
numeric = ["x", "y"]
period = "1m"
max_gap = "10m"
[slices]
validation_from = 0.1
judged_from = 0.2
[task]
kind = "forecast_anomaly"
[quality]
loss_limit = LIMIT
false_alarms_per_day = 1.0
alarm_merge = "1m"
minimum_events = 5
[arms.incumbent]
kind = "pca"
[arms.candidate]
kind = "sma"
"""


def independent(events: int) -> Evidence:
    return Evidence(
        events=events, incidents=events, blocks=10 * events, days=float(events), design_effect=1.0
    )


def test_arms_that_never_differ_can_prove_the_rule_of_three():
    agree = Assumption(discordance=0.0, alpha=ALPHA)
    assert smallest_provable_loss(independent(60), agree) == pytest.approx(
        share_upper_bound(0, 60, ALPHA), rel=CLOSE
    )


def test_it_takes_more_where_arms_differ_more_and_events_hang_together():
    plain = smallest_provable_loss(independent(100), ASSUMED)
    differing = smallest_provable_loss(independent(100), Assumption(discordance=0.2, alpha=ALPHA))
    surer = smallest_provable_loss(
        independent(100), Assumption(discordance=0.05, alpha=ALPHA, power=0.95)
    )
    together = Evidence(events=100, incidents=25, blocks=1000, days=100.0, design_effect=4.0)
    assert plain < differing
    assert plain < surer
    assert plain < smallest_provable_loss(together, ASSUMED)


def test_what_is_needed_is_enough_and_little_more_than_enough():
    needed = needed_for(0.05, independent(60), ASSUMED)
    assert smallest_provable_loss(needed, ASSUMED) <= 0.05
    assert smallest_provable_loss(independent(round(0.9 * needed.events)), ASSUMED) > 0.05
    assert needed.days == pytest.approx(needed.events, rel=0.02)
    enough = independent(1000)
    assert needed_for(0.05, enough, ASSUMED) == enough


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    plant(rows=1500).write_parquet(folder / "a.parquet")
    return folder


def typed(log: Path, limit: float, *options: str, stages: str = "") -> Any:
    path = log / "pilot.toml"
    path.write_text(PLAN.replace("LIMIT", f"{limit:g}") + stages)
    return CliRunner().invoke(app, ["plan", str(path), "--data", str(log), *options])


def test_a_limit_out_of_reach_is_refused_with_what_it_takes(log):
    result = typed(log, 0.01, "--json")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    evidence = answer["known"]["evidence"]
    # Machines fault in the same minutes: 36 events, three at a time.
    assert (evidence["events"], evidence["incidents"]) == (36, 12)
    assert evidence["design_effect"] == pytest.approx(3.0, rel=CLOSE)
    assert answer["reachable"] is False
    assert answer["smallest_provable_loss"] > 0.01
    assert answer["needed"]["events"] > 300
    assert answer["needed"]["days"] == pytest.approx(
        evidence["days"] * answer["needed"]["events"] / 36, rel=0.01
    )
    assert "cannot be proven" in result.stderr


def test_a_limit_within_reach_is_accepted_in_words(log):
    result = typed(log, 0.9, "--power", "0.9")
    assert result.exit_code == 0, result.output
    assert "can be proven with this data" in result.stdout
    assert "power 90 %" in result.stdout


def test_the_incumbent_is_replayed_on_request(log, tmp_path):
    result = typed(log, 0.01, "--json", "--incumbent", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert json.loads(result.stdout)["known"]["recall"] is not None
    (run,) = tmp_path.iterdir()
    assert (run / "models" / "incumbent").is_dir()
    assert not (run / "replay").exists()


STAGES = """
[[stages]]
kind = "offline"
until = 0.6
[[stages]]
kind = "canary"
share = 0.8
until = 0.9
looks = 2
loss_limit = 0.8
[[stages]]
kind = "full"
minimum_events = 10
"""


@pytest.mark.parametrize("options", [(), ("--incumbent",)])
def test_each_stage_has_to_prove_its_own_limit_on_its_own_rows(log, tmp_path, options):
    result = typed(log, 0.9, "--json", "--out", str(tmp_path), *options, stages=STAGES)
    assert result.exit_code == 2, "the last stage has too few events for any verdict"
    offline, canary, full = json.loads(result.stdout)
    assert [one["stage"] for one in (offline, canary, full)] == ["offline", "canary", "full"]
    found = [one["known"]["evidence"]["events"] for one in (offline, canary, full)]
    # Six, four and two times, of all three machines and of the two that the canary draws.
    assert found == [18, 8, 6]
    assert (canary["loss_limit"], full["loss_limit"]) == (0.8, 0.9)
    assert offline["assumed"]["alpha"] == pytest.approx(ALPHA, rel=CLOSE)
    # Two looks share the level, and the first takes next to nothing of it.
    assert 0.9 * ALPHA < canary["assumed"]["alpha"] < 0.99 * ALPHA
    assert offline["plan"] == full["plan"]
    assert full["smallest_provable_loss"] is None
    assert "stage full; raise it" in result.stderr


@pytest.mark.parametrize("options", [(), ("--incumbent",)])
def test_a_stage_without_a_row_can_prove_nothing(tmp_path, options):
    rows = plant(rows=1500)
    times = rows["t"].unique().sort()
    silent = (rows["t"] >= times[900]) & (rows["t"] < times[1350])
    rows.filter(~silent).write_parquet(tmp_path / "a.parquet")
    result = typed(tmp_path, 0.9, "--json", "--out", str(tmp_path), *options, stages=STAGES)
    assert result.exit_code == 2, result.output
    _, canary, _ = json.loads(result.stdout)
    assert canary["reachable"] is False
    assert "no labelled event" in canary["reason"]


def test_a_stage_that_no_entity_falls_to_is_refused(log):
    path = log / "none.toml"
    path.write_text(PLAN.replace("LIMIT", "0.9") + STAGES.replace("share = 0.8", "share = 0.01"))
    with pytest.raises(PlanError, match=r"stages\.canary\.share: 0\.01 of 3 entities draws none"):
        plan_pilot(load_plan(path), log, quiet)


def test_no_event_and_too_few_are_never_within_reach(tmp_path):
    rows = plant(rows=600)
    rows.write_parquet(tmp_path / "a.parquet")
    quality = {"loss_limit": 0.9, "minimum_events": 1000}
    (few,) = plan_pilot(make_plan("a.parquet", **PLANT, quality=quality), tmp_path, quiet)
    assert (few.reachable, few.smallest_loss) == (False, None)
    assert few.needed is not None
    assert few.needed.events >= 1000
    rows.with_columns(fault=0 * rows["fault"]).write_parquet(tmp_path / "a.parquet")
    (none,) = plan_pilot(make_plan("a.parquet", **PLANT), tmp_path, quiet)
    assert (none.reachable, none.smallest_loss, none.needed) == (False, None, None)
    assert "no labelled event" in none.reason


def test_what_cannot_be_planned_is_refused(tmp_path):
    with pytest.raises(PlanError, match="headline"):
        plan_pilot(fleet_plan(quality={"headline": "average_precision"}), tmp_path, quiet)
    with pytest.raises(PlanError, match="--power"):
        plan_pilot(fleet_plan(), tmp_path, quiet, power=1.0)


def test_a_limit_over_the_incumbents_recall_is_no_limit():
    caught = np.arange(120) % 20 == 0
    scores = fleet_scores({"incumbent": caught, "candidate": np.zeros(120, bool)})
    both = Measurements(entities=("a", "b", "c", "d"), scores=scores)
    validation, judged = (AlignedSlice.align(both, name) for name in ("validation", "judged"))
    plan = fleet_plan(quality={"loss_limit": 0.5})
    known = evidence_of_incumbent(validation, judged, plan)
    assert known.recall == pytest.approx(0.05, rel=CLOSE)
    answer = assess_provability(known, ASSUMED, plan)
    assert not answer.reachable
    assert "is no limit" in answer.reason
