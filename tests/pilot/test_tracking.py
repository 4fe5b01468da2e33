"""The MLflow record: what a reader finds there, that it is kept up to date and never doubled."""

import json
import math
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from tests.pilot.fabricated_run import CHANNELS, make_run, read_result
from tests.pilot.mlflow_cases import tracking_uri

from sma_core import Inputs, load_checkpoint, save_checkpoint
from sma_pilot import tracking
from sma_pilot.dashboard import VIEW_TAG
from sma_pilot.errors import RunError, TrackingError
from sma_pilot.report.page import write_report
from sma_pilot.run_folder import RunFolder, write_json
from sma_pilot.store import store_uri
from sma_pilot.tracking import track

KINDS = ("go", "no-go", "inconclusive")
NOTE = "mlflow.note.content"


@dataclass(frozen=True)
class Store:
    """A tracking store with the pilots that it holds."""

    uri: str
    folder: Path
    pilots: dict[str, tuple[RunFolder, str]]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def pilot(self, kind: str) -> Run:
        return self.client.get_run(self.pilots[kind][1])

    def arms(self, kind: str) -> dict[str, Run]:
        pilot = self.pilot(kind)
        found = self.client.search_runs(
            [pilot.info.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{pilot.info.run_id}'",
        )
        return {run.data.tags["sma.arm"]: run for run in found}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    folder = tmp_path_factory.mktemp("out")
    shutil.copy2(empty_database, folder / "mlflow.db")
    uri = store_uri(folder / "mlflow.db")
    pilots = {}
    for seed, kind in enumerate(KINDS):
        run = make_run(folder, kind=kind, days=8, seed=seed)
        write_report(run.path)
        with pytest.MonkeyPatch.context() as patch:
            if kind != "go":  # one pilot with drawings is enough
                patch.setattr(tracking, "draw", lambda evidence: {})
            pilots[kind] = (run, track(run.path, uri))
    return Store(uri, folder, pilots)


@pytest.fixture
def fresh(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFolder, str]:
    """Return a run folder and a store that no other test touches; nothing is drawn for it."""
    monkeypatch.setattr(tracking, "draw", lambda evidence: {})
    database = tmp_path / "mlflow.db"
    shutil.copy2(empty_database, database)
    return make_run(tmp_path, days=4), store_uri(database)


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_and_every_gate_are_tags(store: Store, kind: str) -> None:
    run, pilot = store.pilots[kind][0], store.pilot(kind)
    result = read_result(run)
    tags = pilot.data.tags
    assert pilot.info.status == "FINISHED"
    assert tags["sma.verdict"] == result.verdict == kind
    assert tags["sma.plan_digest"] == run.load_plan().digest
    assert {name: value for name, value in tags.items() if name.startswith("sma.gate.")} == {
        f"sma.gate.{kpi.name.replace('/', '_')}": kpi.status for kpi in result.kpis if kpi.is_gate
    }
    # No machine is given back in this plan, and a word says what no metric can.
    assert tags["sma.payback.capacity"] == "never (conservative never, optimistic never)"
    years = pilot.data.metrics["cost/usage/base/payback_years"]
    assert tags["sma.payback.usage"].startswith(f"{years:.1f} years (conservative ")
    assert "cost/capacity/base/payback_years" not in pilot.data.metrics


def test_every_gate_stands_beside_its_bounds_and_limit(store: Store) -> None:
    result, metrics = read_result(store.pilots["no-go"][0]), store.pilot("no-go").data.metrics
    loss = result.kpi("quality/loss_event_recall")
    assert loss.interval is not None
    assert metrics["kpi/quality_loss_event_recall"] == loss.value
    assert metrics["kpi/quality_loss_event_recall_low"] == loss.interval[0]
    assert metrics["kpi/quality_loss_event_recall_high"] == loss.interval[1]
    assert metrics["kpi/quality_loss_event_recall_limit"] == 0.12
    assert metrics["kpi/memory_ratio_limit"] == 1.0
    assert "kpi/memory_ratio_low" not in metrics


def test_comparisons_are_the_pilots_and_figures_the_arms(store: Store) -> None:
    result, arms = read_result(store.pilots["go"][0]), store.arms("go")
    assert set(arms) == {"incumbent", "candidate", "baseline"}
    own = {
        name: value for name, value in store.pilot("go").data.metrics.items() if name[:3] != "kpi"
    }
    assert own == {
        kpi.name: kpi.value for kpi in result.kpis if kpi.arm is None and kpi.value is not None
    }
    for arm, run in arms.items():
        assert run.info.status == "FINISHED"
        figures = [kpi for kpi in result.kpis if kpi.arm == arm and kpi.value is not None]
        assert len(run.data.metrics) == len(figures)
        assert run.data.metrics["latency/p95_ms"] == result.kpi(f"latency/{arm}_p95_ms").value
    candidate = arms["candidate"].data.metrics
    rate = result.kpi("routing/rate/layer 0 swiglu").value
    assert candidate["routing/rate/layer 0 swiglu"] == rate


def test_params_say_what_was_planned_and_what_was_built(store: Store) -> None:
    params = store.pilot("go").data.params
    assert params["quality.loss_limit"] == "0.12"
    assert params["slices.judged_from"] == "0.5"
    assert params["arms.candidate.kind"] == "sma"
    assert params["arms.baseline.components"] == "8"
    assert "arms.candidate.components" not in params
    assert json.loads(params["log.numeric"]) == list(CHANNELS)
    built = store.arms("go")["candidate"].data.params
    assert built["kind"] == "sma"
    assert built["model.width"] == "16"
    assert json.loads(built["model.pool"])[0]["kind"] == "gated_attention"


def test_files_are_attached(store: Store) -> None:
    run, run_id = store.pilots["go"]
    files = {item.path for item in store.client.list_artifacts(run_id)}
    assert files == {"report.html", "result.json", "plan.json", "plots"}
    copy = store.client.download_artifacts(run_id, "result.json")
    assert Path(copy).read_bytes() == run.result.read_bytes()
    plots = [item.path for item in store.client.list_artifacts(run_id, "plots")]
    assert "plots/intervals.png" in plots
    for plot in plots:
        image = Path(store.client.download_artifacts(run_id, plot)).read_bytes()
        assert image.startswith(b"\x89PNG")


def test_artifacts_lie_beside_the_database(store: Store) -> None:
    for kind in KINDS:
        uri = store.pilot(kind).info.artifact_uri
        assert uri is not None
        assert uri.startswith((store.folder / "mlflow-artifacts").as_uri())


def test_the_data_set_is_an_input(store: Store) -> None:
    inputs = store.pilot("go").inputs
    assert inputs is not None
    by_slice = {item.tags[0].value: item.dataset for item in inputs.dataset_inputs}
    assert set(by_slice) == {"train", "validation", "judged"}
    schema = json.loads(by_slice["judged"].schema or "")
    assert [column["name"] for column in schema["mlflow_colspec"]] == list(CHANNELS)
    assert json.loads(by_slice["judged"].profile or "")["rows"] == 3 * 8 * 1440 // 2


def test_the_model_loads_back_and_predicts_as_its_checkpoint(store: Store) -> None:
    run, candidate = store.pilots["go"][0], store.arms("go")["candidate"]
    assert candidate.outputs is not None
    (output,) = candidate.outputs.model_outputs
    rows = np.random.default_rng(0).standard_normal((2, 9, len(CHANNELS))).astype(np.float32)
    rows[0, 3] = np.nan
    with tracking_uri(store.uri):
        packed = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    checkpoint = load_checkpoint(run.models / "candidate").model
    with torch.inference_mode():
        wanted = checkpoint(Inputs(torch.from_numpy(rows))).prediction.numpy()
    np.testing.assert_array_equal(packed.predict({"numeric": rows})["prediction"], wanted)
    with pytest.raises(MlflowException, match="numeric"):
        packed.predict({"other": rows})


def test_the_model_holds_no_pickle(store: Store) -> None:
    models = list((store.folder / "mlflow-artifacts").rglob("MLmodel"))
    assert len(models) == len(KINDS)
    for model in models:
        files = {path for path in model.parent.rglob("*") if path.is_file()}
        # Python keeps the bytecode of the model's own code beside it, once that has run.
        suffixes = {path.suffix for path in files if path.parent.name != "__pycache__"}
        assert suffixes <= {"", ".json", ".safetensors", ".py", ".txt", ".yaml"}
        assert "pkl" not in model.read_text()


def test_the_saved_view_shows_metrics_that_runs_have(store: Store) -> None:
    experiment = store.client.get_experiment(store.pilot("go").info.experiment_id)
    state = json.loads(json.loads(experiment.tags[VIEW_TAG])["state"])
    known = set(store.pilot("go").data.metrics)
    known.update(*(run.data.metrics for run in store.arms("go").values()))
    charts = [chart["metricKey"] for chart in state["compareRunCharts"]]
    assert set(charts) <= known
    assert {"kpi/latency_ratio_p95", "quality/event_recall", "latency/p95_ms"} <= set(charts)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_tracking_again_changes_nothing(store: Store) -> None:
    run, run_id = store.pilots["go"]
    before = store.pilot("go"), store.arms("go")
    assert track(run.path, store.uri) == run_id
    after = store.pilot("go"), store.arms("go")
    assert after[0].data.metrics == before[0].data.metrics
    assert after[0].inputs.dataset_inputs == before[0].inputs.dataset_inputs  # pyright: ignore[reportOptionalMemberAccess]
    assert {arm: own.info.run_id for arm, own in after[1].items()} == {
        arm: own.info.run_id for arm, own in before[1].items()
    }
    assert after[1]["candidate"].outputs == before[1]["candidate"].outputs
    candidate = after[1]["candidate"].info
    assert len(store.client.get_metric_history(candidate.run_id, "latency/p95_ms")) == 1
    models = store.client.search_logged_models([candidate.experiment_id])
    assert len(models) == len(KINDS)


def test_tracking_again_brings_figures_up_to_date(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    run_id = track(run.path, uri)
    client = MlflowClient(tracking_uri=uri)
    result = read_result(run)
    changed = {"latency/ratio_p95": 2.5, "throughput/ratio": None}
    kpis = tuple(replace(k, value=changed.get(k.name, k.value)) for k in result.kpis)
    write_json(run.result, replace(result, verdict="no-go", kpis=kpis).to_dict())
    client.log_text(run_id, "of an earlier drawing", "plots/stale.png")
    assert track(run.path, uri) == run_id
    now = client.get_run(run_id).data
    assert now.tags["sma.verdict"] == "no-go"
    assert now.metrics["kpi/latency_ratio_p95"] == 2.5
    assert math.isnan(now.metrics["throughput/ratio"]), "not measured any more, and still shown"
    assert now.tags[NOTE].startswith("**✕ No-go.**")
    assert "plots/stale.png" not in [file.path for file in client.list_artifacts(run_id, "plots")]


def test_training_is_a_curve_over_steps(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    folder = run.models / "candidate"
    history = [
        {"step": 50, "train_loss": 0.9, "validation_loss": None, "activation_rate": 0.6},
        {"step": 100, "train_loss": 0.5, "validation_loss": 0.7, "activation_rate": 0.3},
    ]
    fit = {"training": {"learning_rate": 0.01}, "history": history}
    save_checkpoint(folder, load_checkpoint(folder).model, provenance={"fit": fit})
    client = MlflowClient(tracking_uri=uri)
    track(run.path, uri)
    experiment = client.get_run(track(run.path, uri)).info.experiment_id
    (candidate,) = client.search_runs([experiment], filter_string="tags.`sma.arm` = 'candidate'")
    assert candidate.data.params["training.learning_rate"] == "0.01"
    for name, curve in {
        "training/train_loss": [(50, 0.9), (100, 0.5)],
        "training/validation_loss": [(100, 0.7)],
    }.items():
        history = client.get_metric_history(candidate.info.run_id, name)
        assert [(point.step, point.value) for point in history] == curve


def test_a_candidate_that_is_no_sequence_model_has_its_files(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    folder = run.models / "candidate"
    (folder / "model.json").rename(folder / "pca.json")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(track(run.path, uri)).info.experiment_id
    (candidate,) = client.search_runs([experiment], filter_string="tags.`sma.arm` = 'candidate'")
    files = {file.path for file in client.list_artifacts(candidate.info.run_id, "model")}
    assert files == {"model/pca.json", "model/weights.safetensors"}


def test_a_run_that_lost_its_model_is_refused(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    shutil.rmtree(run.models)
    with pytest.raises(RunError, match="sma-pilot fit"):
        track(run.path, uri)


def test_other_params_make_another_run_and_end_the_first(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    run_id = track(run.path, uri)
    client = MlflowClient(tracking_uri=uri)
    client.log_param(run_id, "by", "hand")
    again = track(run.path, uri)
    assert again != run_id
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    experiment = client.get_run(again).info.experiment_id
    active = client.search_runs([experiment])
    assert len(active) == 4
    parents = {child.data.tags.get("mlflow.parentRunId") for child in active}
    assert parents == {None, again}


def test_a_failure_ends_the_run_and_tracking_again_mends_it(
    fresh: tuple[RunFolder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri = fresh

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_pack_model", fail)
        with pytest.raises(TrackingError, match=r"no space left.*track` again"):
            track(run.path, uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sma-pilot/fabricated")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {own.info.status for own in runs} == {"FAILED", "FINISHED"}
    assert [own.info.status for own in runs if "sma.verdict" in own.data.tags] == ["FAILED"]
    track(run.path, uri)
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert {own.info.status for own in runs} == {"FINISHED"}
    assert len(client.search_logged_models([experiment.experiment_id])) == 1


def test_a_deleted_experiment_comes_back(fresh: tuple[RunFolder, str]) -> None:
    run, uri = fresh
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(track(run.path, uri)).info.experiment_id
    client.delete_experiment(experiment)
    again = client.get_run(track(run.path, uri)).info
    assert (again.experiment_id, again.lifecycle_stage) == (experiment, "active")


def test_where_the_command_runs_is_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    project = {elsewhere / "pyproject.toml", elsewhere / "uv.lock"}
    for file in project:
        file.write_text("")
    monkeypatch.chdir(elsewhere)
    out = tmp_path / "out"
    track(make_run(out, days=4).path, store_uri(out / "mlflow.db"))
    assert set(elsewhere.iterdir()) == project
    assert not [path for path in out.rglob("*") if path.name in ("pyproject.toml", "uv.lock")]
    assert not list(out.glob(".mlflow.db*")), "the database's first draft was left"
    with sqlite3.connect(out / "mlflow.db") as database:
        places = database.execute("select artifact_location from experiments").fetchall()
    assert places
    assert all(place.startswith(out.as_uri()) for (place,) in places)


def test_a_damaged_store_is_refused_at_once(fresh: tuple[RunFolder, str], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(TrackingError, match="not an SQLite database; move it away"):
        track(fresh[0].path, fresh[1])


def test_a_run_without_a_verdict_is_refused(fresh: tuple[RunFolder, str], tmp_path: Path) -> None:
    fresh[0].result.unlink()
    with pytest.raises(RunError, match="sma-pilot judge"):
        track(fresh[0].path, store_uri(tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()


def test_the_description_begins_with_verdict_and_limits(store: Store) -> None:
    verdict, gates, table = store.pilot("no-go").data.tags[NOTE].split("\n\n")[:3]
    assert verdict == "**✕ No-go.** The evidence shows that a limit of the plan is broken."
    first, *others = gates.split(" · ")
    assert first.startswith("✕ Loss of event recall 0.")
    assert first.endswith("(≤ 0.120)")
    assert [gate[0] for gate in others] == ["✓", "✓", "✓"]
    assert [row.count("|") for row in table.split("\n")] == [9] * 6


def test_text_of_a_plan_stays_text(store: Store) -> None:
    experiment = store.client.get_experiment(store.pilot("go").info.experiment_id)
    assert "Presses of hall 3 &#60;b&#62;spring" in experiment.tags[NOTE]
