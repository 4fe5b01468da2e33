"""`sma-pilot monitor` as typed: its table, its JSON, its page, and the trend that MLflow shows."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tests.pilot.monitor_cases import (
    JUDGED_UNTIL,
    PLAN,
    level_arms,
    monitor_plan,
    plant,
    signed_run,
    write_log,
)
from tests.pilot.replay_cases import FakeClock, quiet

from sma_pilot import tracking
from sma_pilot.errors import RunError
from sma_pilot.monitor import course
from sma_pilot.run_folder import RunFolder

HOSTILE = 'saw </title><script>alert("x")</script> & `co|`\nline'


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> RunFolder:
    """A signed pilot under ``out``, its plan beside it."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "pilot.toml").write_text(PLAN)
    (folder / "out").mkdir()
    shutil.copy(empty_database, folder / "out" / "mlflow.db")
    return signed_run(folder / "out", monitor_plan())


@pytest.fixture
def monitor(watched: RunFolder, monkeypatch: pytest.MonkeyPatch, typed: Any) -> Any:
    """Type the command with a log of these rows."""
    monkeypatch.setattr(course, "build_arms", lambda plan: level_arms(FakeClock()))
    out = watched.path.parent

    def run(frame: Any, *options: str) -> tuple[int, str, str]:
        log = write_log(out.parent / "new.parquet", frame)
        plan = str(out.parent / "pilot.toml")
        return typed("monitor", plan, "--new", log, "--out", str(out), *options)

    return run


def test_three_looks_as_typed_and_their_trend(monitor: Any, watched: RunFolder, typed: Any) -> None:
    """One test, as a store takes seconds to make: a fine look, its labels, and a collapse."""
    code, out, _ = monitor(plant(JUDGED_UNTIL, 700, labelled=False), "--exit-code")
    assert code == 0
    assert "no file has the label column 'fault'" in out
    assert "✓ KEEP: No change is over a limit of the plan." in out
    assert "is not known, though." in out

    code, out, _ = monitor(plant(JUDGED_UNTIL, 700), "--json")
    assert code == 0
    document = json.loads(out)
    assert document["recommendation"] == "keep"
    assert [(own["number"], own["replaces"]) for own in document["looks"]] == [(1, None), (2, 1)]
    assert document["taken"][0]["format"] == "sma.monitor_look"

    frame = plant(JUDGED_UNTIL + 700, 700, machines=("mill", HOSTILE), z=8.0)
    code, out, _ = monitor(frame, "--exit-code")
    assert code == 10
    assert "✕ FALL BACK: Go back to the incumbent" in out
    assert HOSTILE not in out

    page = watched.monitor_page.read_text()
    assert "<script>alert" not in page
    assert "alert(&#34;x&#34;)" in page
    assert "replaced by 2" in page
    assert re.findall(r"<h3>(.*?)</h3>", page) == [
        "Quality, look by look",
        "Inputs and routing, look by look",
    ]

    store = f"sqlite:///{watched.path.parent / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("sma-pilot/watched")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    looks = {own.data.tags["sma.look"]: own for own in found if "sma.look" in own.data.tags}
    assert {number: own.data.tags["sma.recommendation"] for number, own in looks.items()} == {
        "1": "keep",
        "2": "keep",
        "3": "fall back",
    }
    assert looks["1"].data.tags["sma.replaced_by"] == "2"
    assert looks["2"].data.tags["sma.replaces"] == "1"
    assert looks["3"].data.tags["sma.watch.routing_collapsed_share"] == "alarm"
    assert all(own.info.status == "FINISHED" for own in looks.values())
    # The newest run shows the trend; the look that was replaced is no part of it.
    trend = client.get_metric_history(looks["3"].info.run_id, "monitor/routing_collapsed_share")
    assert [(point.step, point.value) for point in trend] == [(2, 0.0), (3, 1.0)]
    # What a look did not measure it does not show, whatever others did.
    assert "monitor/quality_loss_event_recall" not in looks["1"].data.metrics
    assert "monitor/quality_loss_event_recall" in looks["2"].data.metrics
    note = looks["3"].data.tags["mlflow.note.content"]
    assert note.startswith("**fall back**: Go back to the incumbent")
    artifacts = {file.path for file in client.list_artifacts(looks["3"].info.run_id)}
    assert artifacts == {"look.json", "monitor.html", "plots"}
    view = client.get_experiment(experiment.experiment_id).tags["mlflow.sharedViewState.pilot"]
    assert "After the go, look by look" in view

    # Recording again adds none, and what was signed is still what was signed.
    assert sorted(tracking.track_looks(watched.path, store)) == sorted(
        own.info.run_id for own in looks.values()
    )
    code, out, _ = typed("verify", str(watched.path))
    assert code == 0
    assert "3 of the monitor, as they were taken" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--new", "absent.csv"), "--new: 'absent.csv' matches no file"),
        (("--new", "."), "--new: '.' is a folder"),
        ((), "Missing option '--new'"),
    ],
)
def test_slips_exit_with_two(
    watched: RunFolder, typed: Any, options: tuple[str, ...], words: str
) -> None:
    out = watched.path.parent
    code, _, err = typed("monitor", str(out.parent / "pilot.toml"), "--out", str(out), *options)
    assert code == 2
    assert words in err


def test_a_plan_that_was_changed_is_another(watched: RunFolder, typed: Any, tmp_path: Path) -> None:
    changed = tmp_path / "pilot.toml"
    changed.write_text(PLAN + "\n[monitor]\ndrift_limit = 9.0\n")
    out = str(watched.path.parent)
    code, _, err = typed("monitor", str(changed), "--new", "x.csv", "--out", out)
    assert code == 2
    assert "no pilot was run by this very plan" in err
    changed.write_text(PLAN + "\n[monitor]\ndrift_limits = 9.0\n")
    code, _, err = typed("monitor", str(changed), "--new", "x.csv", "--out", out)
    assert code == 2
    assert "monitor.drift_limits: unknown field" in err


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"task": {"kind": "classification"}}, "task.kind: classes are not watched after a go"),
        ({"log": {"text": {}}}, "log.text: templates are not watched after a go"),
    ],
)
def test_what_is_not_watched_is_refused(tables: dict[str, Any], message: str) -> None:
    """Half of a plan is never watched in silence."""
    plan = monitor_plan()
    for table, fields in tables.items():
        part = getattr(plan, table)
        plan = plan.model_copy(update={table: part.model_copy(update=fields)})
    with pytest.raises(RunError, match=re.escape(message)):
        course.take_looks(plan, RunFolder(Path()), (), Path(), quiet)
