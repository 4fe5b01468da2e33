"""The MLflow store: a parent, a child per trial, no duplicate, no run that seems to live on."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from tests.eval.studies import MLFLOW_WARNING, finished, tiny_study, tiny_trials

from sma_eval.entries import STUDY_TAG, TRIAL_TAG
from sma_eval.errors import TrackingError
from sma_eval.folder import StudyFolder
from sma_eval.records import Report, TrialRecord
from sma_eval.tracker import Tracker
from sma_eval.tracking import StudyRuns, default_uri

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making its tables takes most of their time."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    # An experiment of its own for each test.
    study = tiny_study(name=f'name = "{tmp_path.name}"')
    return StudyFolder.create(tmp_path, study, tiny_trials(), tmp_path / "datasets" / "d", "abc")


def tracked(folder: StudyFolder, store: str) -> Tracker:
    """Return a tracker that writes when it is told to, and not by the clock."""
    return Tracker(StudyRuns(folder, store), every_seconds=3600.0)


@pytest.fixture
def tracker(folder: StudyFolder, store: str) -> Tracker:
    return tracked(folder, store)


def runs_of(folder: StudyFolder, store: str) -> dict[str, Run]:
    """Return the study's runs by name."""
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(f"sma-eval/{folder.study.name}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name or "": run for run in found}
    assert len(runs) == len(found)
    return runs


def report(step: int, loss: float = 1.0) -> Report:
    return Report(step=step, metrics={"train_loss": loss, "validation_loss": loss / 2})


def history(store: str, run: Run, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=store)
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def records_of(folder: StudyFolder) -> list[TrialRecord]:
    """Return one finished trial, one failed, one running, one that has not begun."""
    done, failed, running, pending = folder.trials
    return [
        finished(done, 0.75),
        TrialRecord(trial=failed, status="failed", reason="TrainingError: boom"),
        TrialRecord(trial=running, status="running", step=4),
        TrialRecord(trial=pending),
    ]


def test_a_study_is_a_parent_with_a_child_per_trial(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    records = records_of(folder)
    for record in records[:3]:
        tracker.update(replace(record, status="running", result=None, reason=None), report(4))
    tracker.flush()
    assert {run.info.status for run in runs_of(folder, store).values()} == {"RUNNING"}
    for record in records[:2]:
        tracker.update(record, None)
    tracker.flush()
    file = folder.path / "table.txt"
    file.write_text("table")
    tracker.close(records, status="KILLED", description="| arm |", files=[file])

    runs = runs_of(folder, store)
    parent = runs.pop(folder.study.name)
    assert parent.info.status == "KILLED"
    assert parent.data.tags["mlflow.note.content"].endswith("\n\n| arm |")
    assert parent.data.params["task.length"] == "6"
    client = MlflowClient(tracking_uri=store)
    files = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert files == {"study.json", "table.txt"}

    done, failed, running, _ = (record.trial.label for record in records)
    assert set(runs) == {done, failed, running}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.inputs is not None
        assert run.inputs.dataset_inputs[0].dataset.digest == "abc"
    assert [runs[name].info.status for name in (done, failed, running)] == [
        "FINISHED",
        "FAILED",
        "KILLED",
    ]
    assert runs[failed].data.tags["mlflow.note.content"] == "TrainingError: boom"


def test_a_stopped_trial_is_neither_failed_nor_finished(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    ran, spared, *_ = folder.trials
    tracker.update(TrialRecord(trial=ran, status="running", step=4), report(4))
    why: Any = {"status": "stopped", "reason": "stopped by ASHA at step 4"}
    records = [TrialRecord(trial=ran, step=4, **why), TrialRecord(trial=spared, **why)]
    for record in records:
        tracker.update(record, None)
    tracker.close(records, status="FINISHED")
    runs = runs_of(folder, store)
    # What never began has no run.
    assert set(runs) == {folder.study.name, ran.label}
    assert runs[ran.label].info.status == "KILLED"
    assert runs[ran.label].data.tags["sma.status"] == "stopped"
    assert runs[ran.label].data.tags["mlflow.note.content"] == "stopped by ASHA at step 4"


def test_a_trial_tells_its_factors_and_its_figures_in_groups(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    one = folder.trials[1]
    tracker.update(TrialRecord(trial=one, status="running", step=4), report(4))
    tracker.update(finished(one, 0.75), None)
    tracker.flush()
    run = runs_of(folder, store)[one.label]
    told = {"policy": "tempered_softmax", "target_rate": "0.5", "seed": "0"}
    assert told.items() <= run.data.params.items()
    assert run.data.params["pool"].startswith("gated_attention(")
    assert run.data.params["pool.0.window"] == "8"
    assert run.data.params["training.max_steps"] == "12"
    metrics = run.data.metrics
    assert metrics["test/accuracy"] == 0.75
    assert metrics["cost/flops_per_step"] == 50.0
    assert metrics["activation/layer_0.0_gated_attention"] == 0.5
    assert metrics["live/train_loss"] == 1.0
    assert {name.partition("/")[0] for name in metrics} == {
        *("live", "validation", "test", "activation", "cost")
    }
    assert run.data.tags["sma.checkpoint"].startswith("ray/attempt-000/")


def test_what_is_too_much_for_one_batch_goes_in_several(
    folder: StudyFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder.trials[0]
    StudyRuns(folder, store).write(finished(one), [report(4), report(8)])
    whole = runs_of(folder, store)[one.label].data
    monkeypatch.setattr("sma_eval.tracking._MAX_METRICS", 3)
    monkeypatch.setattr("sma_eval.tracking._MAX_PARAMS", 5)
    other = folder.trials[1]
    StudyRuns(folder, store).write(finished(other), [report(4), report(8)])
    parts = runs_of(folder, store)[other.label].data
    assert parts.metrics == whole.metrics
    assert len(whole.metrics) > 6
    assert {"training.max_steps", "model.width"} <= parts.params.keys()


def test_trials_of_several_pools_are_told_apart_by_short_names(tmp_path: Path, store: str) -> None:
    pools = "pool = [" + ", ".join(
        f'[{{ kind = "gated_attention", query_width = 4, window = {window} }}]' for window in (4, 8)
    )
    study, trials = tiny_study(pool=f"{pools}]"), tiny_trials(pool=f"{pools}]")
    (tmp_path / "several").mkdir()
    folder = StudyFolder.create(tmp_path / "several", study, trials, tmp_path / "d", "abc")
    tracker = tracked(folder, store)
    tracker.update(finished(trials[3], 0.75), None)
    tracker.flush()
    run = runs_of(folder, store)["tempered_softmax @ 0.5 | gated_attention(window=8) seed=0"]
    assert run.data.tags["sma.policy"] == "tempered_softmax @ 0.5"
    assert run.data.tags["sma.pool"] == "gated_attention(window=8)"
    assert run.data.params["pool"] == "gated_attention(query_width=4, window=8)"


def test_a_study_that_goes_on_goes_on_in_the_same_runs(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    one = folder.trials[0]
    running = TrialRecord(trial=one, status="running", step=8)
    for step in (4, 8):
        tracker.update(running, report(step, loss=step))
        tracker.flush()
    # The driver dies here. Another one goes on from the checkpoint of step 4.
    again = tracked(folder, store)
    for step in (8, 12):
        again.update(replace(running, step=step), report(step, loss=step))
        again.flush()
    again.update(finished(one, 0.5), None)
    records = [finished(one, 0.5), *(TrialRecord(trial=t) for t in folder.trials[1:])]
    again.close(records, status="FINISHED")
    # And once more, with nothing to do.
    tracked(folder, store).close(records, status="FINISHED")

    runs = runs_of(folder, store)
    assert set(runs) == {folder.study.name, one.label}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert history(store, runs[one.label], "live/train_loss") == [(4, 4.0), (8, 8.0), (12, 12.0)]
    assert history(store, runs[one.label], "test/accuracy") == [(12, 0.5)]


def test_a_failed_trial_that_is_tried_again_tells_of_its_last_try(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    one = folder.trials[0]
    tracker.update(TrialRecord(trial=one, status="failed", reason="boom"), None)
    tracker.flush()
    tracker.update(TrialRecord(trial=one, status="failed", reason="bang"), None)
    tracker.flush()
    assert runs_of(folder, store)[one.label].data.tags["mlflow.note.content"] == "bang"
    tracker.update(TrialRecord(trial=one, status="running", step=4), report(4))
    tracker.flush()
    run = runs_of(folder, store)[one.label]
    assert (run.info.status, run.data.tags["sma.status"]) == ("RUNNING", "running")
    tracker.update(finished(one), report(12))
    tracker.flush()
    run = runs_of(folder, store)[one.label]
    assert run.info.status == "FINISHED"
    assert run.data.tags["sma.status"] == "finished"
    assert run.data.tags["mlflow.note.content"] == ""


def test_reports_that_were_not_written_yet_are_written_at_the_end(
    folder: StudyFolder, store: str
) -> None:
    tracker = tracked(folder, store)
    one, two, *_ = folder.trials
    tracker.update(TrialRecord(trial=one, status="running", step=4), report(4))
    running = TrialRecord(trial=two, status="running", step=4)
    tracker.update(running, report(4))
    tracker.close([finished(one), running], status="KILLED")
    runs = runs_of(folder, store)
    for name in (one.label, two.label):
        assert history(store, runs[name], "live/train_loss") == [(4, 1.0)]
    assert runs[two.label].info.status == "KILLED"


def test_a_store_that_fails_stops_no_trial_and_loses_no_figure(
    folder: StudyFolder,
    tracker: Tracker,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = folder.trials[0]

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the store is away")

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(MlflowClient, "log_batch", away)
        tracker.update(TrialRecord(trial=one, status="running", step=4), report(4))
        assert not tracker.flush()
        tracker.update(finished(one), report(12))
        assert not tracker.flush()
    assert "the store is away; trials go on" in caplog.text
    assert tracker.flush()
    assert runs_of(folder, store)[one.label].info.status == "FINISHED"
    tracker.close([finished(one)], status="FINISHED")
    run = runs_of(folder, store)[one.label]
    assert run.info.status == "FINISHED"
    assert history(store, run, "live/train_loss") == [(4, 1.0), (12, 1.0)]
    assert "test/accuracy" in run.data.metrics
    assert run.data.params["policy"] == "always"


def test_a_store_that_refuses_one_trial_still_takes_the_others_at_the_end(
    folder: StudyFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, (one, *others) = StudyRuns(folder, store), folder.trials
    tried: list[str] = []
    write, away = runs.write, {one.id}

    def refusing(record: TrialRecord, reports: Sequence[Report]) -> None:
        tried.append(record.trial.id)
        if record.trial.id in away:
            raise MlflowException("refused")
        write(record, reports)

    monkeypatch.setattr(runs, "write", refusing)
    records = [finished(trial) for trial in (one, *others)]
    Tracker(runs, every_seconds=3600.0).close(records, status="FINISHED")
    ended = runs_of(folder, store)
    assert set(ended) == {folder.study.name, *(trial.label for trial in others)}
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    # One that refuses all of them is away, and is asked three times and not for each trial.
    tried.clear()
    away |= {trial.id for trial in others}
    Tracker(runs, every_seconds=3600.0).close(records, status="FINISHED")
    assert len(tried) == 3


def test_what_a_failed_writing_leaves_comes_before_what_came_meanwhile(
    folder: StudyFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, one = StudyRuns(folder, store), folder.trials[0]
    tracker = Tracker(runs, every_seconds=3600.0)
    running = TrialRecord(trial=one, status="running", step=4)
    tracker.update(running, report(4))

    def meanwhile(*_: Any) -> None:
        tracker.update(replace(running, step=8), report(8))
        raise MlflowException("away")

    with monkeypatch.context() as broken:
        broken.setattr(runs, "write", meanwhile)
        assert not tracker.flush()
    assert tracker.flush()
    # The last step is known as such: what a checkpoint repeats is not written again.
    tracker.update(replace(running, step=8), report(8))
    assert tracker.flush()
    run = runs_of(folder, store)[one.label]
    assert [step for step, _ in history(store, run, "live/train_loss")] == [4, 8]


def test_the_driver_never_waits_for_the_store(
    folder: StudyFolder, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, one = StudyRuns(folder, store), folder.trials[0]
    asked, answer = threading.Event(), threading.Event()
    write = runs.write

    def slow(*arguments: Any) -> None:
        asked.set()
        assert answer.wait(60)
        write(*arguments)

    monkeypatch.setattr(runs, "write", slow)
    tracker = Tracker(runs, every_seconds=0.0)
    tracker.update(TrialRecord(trial=one, status="running", step=4), report(4))
    assert asked.wait(60)
    # The store is busy with the first report, and these are taken none the less.
    tracker.update(TrialRecord(trial=one, status="running", step=8), report(8))
    tracker.update(finished(one), None)
    answer.set()
    tracker.close([finished(one)], status="FINISHED")
    run = runs_of(folder, store)[one.label]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(store, run, "live/train_loss")] == [4, 8]


def test_files_lie_beside_the_database_wherever_the_command_runs(
    folder: StudyFolder, tracker: Tracker, store: str
) -> None:
    uri = runs_of(folder, store)[folder.study.name].info.artifact_uri
    assert uri is not None
    assert uri.startswith((Path(store.removeprefix("sqlite:///")).parent / "artifacts").as_uri())


def test_two_folders_of_one_study_do_not_mix(
    folder: StudyFolder, tracker: Tracker, store: str, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = StudyFolder.create(
        tmp_path / "second", folder.study, folder.trials, tmp_path / "d", "abc"
    )
    assert StudyRuns(second, store).parent_id != StudyRuns(folder, store).parent_id


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////proc/none/mlflow.db"])
def test_a_store_that_cannot_be_opened_is_named(folder: StudyFolder, uri: str) -> None:
    with pytest.raises(TrackingError, match="cannot be opened") as caught:
        StudyRuns(folder, uri)
    assert uri in str(caught.value)


def test_a_store_that_is_no_database_is_named(folder: StudyFolder, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("my notes\n" * 500)
    with pytest.raises(TrackingError, match=r"notes\.db: cannot be opened"):
        StudyRuns(folder, f"sqlite:///{tmp_path / 'notes.db'}")


def test_the_default_store_keeps_everything_in_the_study_folder(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    tracker = Tracker(StudyRuns(folder, default_uri(folder)))
    tracker.close([], status="FINISHED")
    run = runs_of(folder, default_uri(folder))[folder.study.name]
    assert run.info.artifact_uri is not None
    assert run.info.artifact_uri.startswith((folder.path / "artifacts").as_uri())
    assert {STUDY_TAG, "sma.study_digest"} <= run.data.tags.keys()
    assert TRIAL_TAG not in run.data.tags
    assert not list(Path.cwd().iterdir())
