"""A pilot in stages in MLflow: one run over all looks, a child for each stage, one model."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.pilot.decision_cases import give
from tests.pilot.stage_cases import go_on, script, staged_plan, staged_run

from sma_pilot import pilot
from sma_pilot.stages.standing import standing
from sma_pilot.store import store_uri

GATE = "kpi/quality_loss_event_recall"


def test_the_trend_over_stages_and_looks_is_on_one_run(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {("offline", 1): "inconclusive"})
    run = staged_run(tmp_path, staged_plan())
    shutil.copy2(empty_database, tmp_path / "mlflow.db")
    uri = store_uri(tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri=uri)
    go_on(run)
    first = pilot.track(run, uri)
    tags = client.get_run(first).data.tags
    assert tags["sma.state"] == "shadow: go, waits for a signature"
    assert [tags[f"sma.stage.{name}"] for name in ("offline", "shadow", "full")] == [
        "go",
        "pending",
        "waiting",
    ]
    assert client.get_registered_model("case").aliases == {"candidate": 1}

    give(run.at("shadow"))
    go_on(run)
    give(run.at("full"))
    assert pilot.track(run, uri) == first
    pilot_run = client.get_run(first)
    assert pilot_run.data.tags["sma.verdict"] == standing(run).verdict == "go"
    assert pilot_run.data.tags["sma.signed.shadow"].startswith("go by Ada")
    assert "every stage is go" in pilot_run.data.tags["mlflow.note.content"]
    # Two looks offline, two in the shadow, one in full: one curve.
    history = client.get_metric_history(first, GATE)
    assert [(point.step, point.value) for point in history] == [
        (1, pytest.approx(0.08)),
        (2, pytest.approx(0.02)),
        (3, pytest.approx(0.02)),
        (4, pytest.approx(0.02)),
        (5, pytest.approx(0.02)),
    ]
    found = client.search_runs(
        [pilot_run.info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{first}'",
    )
    stages = {own.data.tags["sma.stage"]: own for own in found}
    assert stages.keys() == {"offline", "shadow", "full"}
    offline = client.get_metric_history(stages["offline"].info.run_id, GATE)
    assert [point.step for point in offline] == [1, 2]
    assert stages["shadow"].data.tags["sma.decision"] == "go"
    assert stages["shadow"].data.params["stage.kind"] == "shadow"
    # The last stage's go makes the champion; recording again made no second model.
    assert len(client.search_model_versions("name = 'case'")) == 1
    assert client.get_registered_model("case").aliases == {"champion": 1}
