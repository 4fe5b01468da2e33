"""A study recorded in a real MLflow server over http, and one that dies on the way."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.eval.studies import finished, tiny_study, tiny_trials
from tests.mlflow_server import MLflowServer
from tests.slow import slow

from sma_eval.folder import StudyFolder
from sma_eval.records import Report, TrialRecord
from sma_eval.tracker import Tracker
from sma_eval.tracking import StudyRuns

pytestmark = slow


def test_a_study_is_recorded_over_http_also_past_a_server_that_dies(
    server: MLflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StudyFolder.create(tmp_path, tiny_study(), tiny_trials(), tmp_path / "d", "abc")
    table = tmp_path / "table.txt"
    table.write_text("table")
    tracker = Tracker(StudyRuns(folder, server.uri), every_seconds=3600.0)
    records = [finished(one, 0.25 * i) for i, one in enumerate(folder.trials, start=1)]
    step = Report(step=4, metrics={"train_loss": 0.5})
    for record in records[:2]:
        tracker.update(TrialRecord(trial=record.trial, status="running", step=4), step)
        tracker.update(record, None)
    assert tracker.flush()
    server.kill()
    tracker.update(records[2], None)
    assert not tracker.flush()  # told, and trials go on
    server.start()
    tracker.close(records, status="FINISHED", description="| arm |", files=[table])

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("sma-eval/tiny")
    assert experiment is not None
    assert any(name.startswith("mlflow.sharedViewState.arms-") for name in experiment.tags)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (study,) = (run for run in runs if "sma.trial" not in run.data.tags)
    files = {entry.path for entry in client.list_artifacts(study.info.run_id)}
    assert files == {"study.json", "table.txt"}
    found = {run.data.tags.get("sma.trial"): run.data.metrics for run in runs}
    for record in records:
        assert record.result is not None
        assert found[record.trial.id]["test/accuracy"] == record.result.test["accuracy"]
    assert found[records[0].trial.id]["live/train_loss"] == 0.5
    # MLflow's own lines do not stand amid the results of `--json`.
    assert capsys.readouterr().out == ""
