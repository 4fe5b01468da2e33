"""A whole pilot recorded in a real MLflow server over http, and a server that dies half-way."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from tests.mlflow_server import MLflowServer
from tests.pilot.fabricated_run import CHANNELS, make_run
from tests.pilot.mlflow_cases import tracking_uri
from tests.pilot.monitor_cases import JUDGED_UNTIL, PLAN, plant, write_log
from tests.slow import slow

from sma_pilot import tracking
from sma_pilot.run_folder import RunFolder

pytestmark = slow

TRAINING = "max_steps = 20\nbatch_size = 4\nwindow = 64\n"
# Limits and a band that hold on any machine: what is asked here is where the record goes.
SMALL = (
    PLAN.replace("_ratio_limit = 2.0", "_ratio_limit = 50.0")
    .replace("[efficiency]", "[efficiency]\nnoise_band = 0.99")
    .replace('kind = "dense_twin"\n', f'kind = "dense_twin"\n[arms.incumbent.training]\n{TRAINING}')
    .replace(
        'kind = "sma"\n',
        'kind = "sma"\n[arms.candidate.model]\nwidth = 16\nlayers = 1\nstates = 4\n'
        f"[arms.candidate.training]\n{TRAINING}",
    )
)


def test_run_sign_and_monitor_are_recorded_over_http(
    server: MLflowServer, tmp_path: Path, typed: Any
) -> None:
    plan, out = tmp_path / "pilot.toml", tmp_path / "out"
    plan.write_text(SMALL)
    write_log(tmp_path / "plant.parquet", plant(0, JUDGED_UNTIL))
    new = write_log(tmp_path / "new.parquet", plant(JUDGED_UNTIL, 700))
    common = (str(plan), "--data", str(tmp_path), "--out", str(out), "--tracking-uri", server.uri)

    code, printed, err = typed("run", *common, "--json")
    assert code == 0, err
    result = json.loads(printed)  # one document alone: MLflow's own lines do not stand in it
    client = MlflowClient(tracking_uri=server.uri)
    assert client.get_registered_model("watched").aliases == {"candidate": "1"}

    run = next(path for path in out.iterdir() if path.name.startswith("watched-"))
    override = () if result["verdict"] == "go" else ("--override",)  # as noisy as the machine is
    words = ("--decision", "go", "--by", "Ada", "--reason", "As judged.", *override)
    code, printed, err = typed("sign", str(run), *words, "--tracking-uri", server.uri, "--json")
    assert code == 0, err
    signed = json.loads(printed)
    assert client.get_registered_model("watched").aliases == {"champion": "1"}
    kept = client.get_run(signed["mlflow_run"])
    assert kept.info.status == "FINISHED"
    assert kept.data.tags["sma.decision_sha256"] == signed["sha256"]
    values = {kpi["name"]: kpi["value"] for kpi in result["kpis"]}
    assert kept.data.metrics["kpi/quality_loss_event_recall"] == pytest.approx(
        values["quality/loss_event_recall"]
    )
    files = {file.path for file in client.list_artifacts(kept.info.run_id)}
    assert {"report.html", "result.json", "plan.json", "plots"} <= files
    page = client.download_artifacts(kept.info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (run / "report.html").read_bytes()

    code, printed, err = typed("monitor", *common, "--new", new, "--json")
    assert code == 0, err
    taken = json.loads(printed)["taken"]
    (look,) = client.search_runs([kept.info.experiment_id], filter_string="tags.`sma.look` = '1'")
    assert look.data.tags["mlflow.parentRunId"] == kept.info.run_id
    assert look.data.params["rows"] == str(taken[0]["rows"])
    assert look.data.metrics["monitor/routing_collapsed_share"] == 0.0
    assert typed("verify", str(run))[0] == 0
    assert not (out / "mlflow.db").exists()

    code, printed, _ = typed("ui", "--tracking-uri", server.uri)
    assert (code, printed) == (0, f"{server.uri}/#/experiments?workflowType=machine_learning\n")


def test_a_server_that_dies_amid_a_record_is_caught_up_with(
    server: MLflowServer, tmp_path: Path, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = make_run(tmp_path, days=4)

    def dies(*_: Any) -> dict[str, Any]:
        server.kill()
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "draw", dies)
        code, _, err = typed("track", str(run.path), "--tracking-uri", server.uri)
    assert code == 2
    assert err.startswith(f"error: {server.uri}: {run.path} cannot be recorded: ")
    assert err.endswith("mend the store and run `sma-pilot track` again\n")
    assert err.count("\n") == 1
    code, _, err = typed("track", str(run.path), "--tracking-uri", server.uri)
    assert code == 2
    assert "no MLflow server answers there" in err

    server.start()
    code, run_id, err = typed("track", str(run.path), "--tracking-uri", server.uri)
    assert code == 0, err
    client = MlflowClient(tracking_uri=server.uri)
    found = client.search_runs([client.get_run(run_id.strip()).info.experiment_id])
    assert {own.info.status for own in found} == {"FINISHED"}
    assert len(found) == 4  # the pilot and its three arms, none twice
    with tracking_uri(server.uri):
        model = mlflow.pyfunc.load_model("models:/fabricated@candidate")
        rows = np.zeros((1, 3, len(CHANNELS)), dtype=np.float32)
        assert model.predict({"numeric": rows})["prediction"].shape == (1, 3, len(CHANNELS))
    shutil.rmtree(RunFolder(run.path).replay)
    assert typed("track", str(run.path), "--tracking-uri", server.uri)[0] == 2, "a damaged run"


def test_a_record_that_is_killed_is_caught_up_with(
    server: MLflowServer, tmp_path: Path, typed: Any
) -> None:
    """By SIGKILL, once its first run stands in the server and before the last one has ended."""
    run = make_run(tmp_path, days=4, name="killed")
    words = ("track", str(run.path), "--tracking-uri", server.uri)
    client = MlflowClient(tracking_uri=server.uri)

    def recorded() -> list[str]:
        """Status of each run of this pilot."""
        experiments = client.search_experiments(filter_string="name LIKE '%killed'")
        found = client.search_runs([e.experiment_id for e in experiments]) if experiments else []
        return [run.info.status for run in found]

    with subprocess.Popen([str(Path(sys.executable).with_name("sma-pilot")), *words]) as process:
        while not recorded() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "RUNNING" in recorded()

    code, _, err = typed(*words)
    assert code == 0, err
    assert recorded() == ["FINISHED"] * 4  # the pilot and its three arms, none twice


def test_an_address_beside_the_server_is_told_of_before_anything_is_written(
    server: MLflowServer, tmp_path: Path, typed: Any
) -> None:
    (tmp_path / "pilot.toml").write_text(SMALL)
    out = tmp_path / "out"
    words = ("run", str(tmp_path / "pilot.toml"), "--out", str(out), "--tracking-uri")
    code, _, err = typed(*words, f"{server.uri}/elsewhere")
    assert code == 2
    assert "what answers there does not speak as an MLflow server" in err
    assert "<html" not in err
    assert not out.exists()
