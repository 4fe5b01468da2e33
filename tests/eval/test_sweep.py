"""Studies on Ray, whole: what finishes, what fails, what dies and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tests.eval.studies import MLFLOW_WARNING, study_text, tiny_study
from tests.tolerances import TOLERANCES

from sma_core.checkpoint import load_checkpoint
from sma_core.dataset import PreparedDataset
from sma_core.errors import SMAError
from sma_eval import experiment
from sma_eval.errors import StudyError
from sma_eval.experiment import Outcome
from sma_eval.folder import DATASETS
from sma_eval.records import Report, TrialRecord
from sma_eval.resources import Resources
from sma_eval.study import Study, parse_study
from sma_eval.sweep import connected
from sma_eval.trial import run_trial

pytestmark = [
    pytest.mark.usefixtures("ray_address"),
    pytest.mark.filterwarnings(MLFLOW_WARNING),
]

# A learning rate that no training survives.
DIVERGING = "[nuisance]\nlearning_rate = [5e-3, 1e30]"
# Seconds long, so that it can be stopped on the way; a checkpoint is never far.
LONG = {
    "max_steps": "max_steps = 300",
    "evaluate_every": "evaluate_every = 300",
    "checkpoint_every": "checkpoint_every = 20",
    "max_concurrent": "max_concurrent = 1",
    "seeds": "seeds = [0]",
}


class Log:
    """An observer that keeps everything, and does something on the way."""

    def __init__(self, then: Callable[[TrialRecord], None] = lambda record: None) -> None:
        self.records: list[TrialRecord] = []
        self.reports: dict[str, list[int]] = {}
        self._then = then

    def update(self, record: TrialRecord, report: Report | None) -> None:
        self.records.append(record)
        if report is not None:
            self.reports.setdefault(record.trial.id, []).append(report.step)
        self._then(record)


def run(study: Study, out: Path, *observers: Any) -> Outcome:
    return experiment.run(study, data=Path(), out=out, observers=observers)


def mlflow_runs(outcome: Outcome) -> list[Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{outcome.folder.path / 'mlflow.db'}")
    experiment_ = client.get_experiment_by_name(f"sma-eval/{outcome.folder.study.name}")
    assert experiment_ is not None
    return list(client.search_runs([experiment_.experiment_id]))


def statuses(outcome: Outcome) -> dict[str, int]:
    """Count the runs by status, the parent's apart."""
    counts: dict[str, int] = {}
    for one in mlflow_runs(outcome):
        who = "child" if "mlflow.parentRunId" in one.data.tags else "parent"
        name = f"{who} {one.info.status}"
        counts[name] = counts.get(name, 0) + 1
    return counts


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Outcome:
    """Two arms, two seeds, two learning rates of which one makes a trial throw."""
    study = tiny_study(mode=f'mode = "max"\n\n{DIVERGING}')
    return run(study, tmp_path_factory.mktemp("done"))


def test_a_trial_that_throws_is_recorded_and_the_others_go_on(done: Outcome) -> None:
    assert done.complete
    assert (done.count("finished"), done.count("failed")) == (4, 4)
    for record in done.records:
        if record.trial.nuisance["learning_rate"] == 1e30:
            assert record.reason is not None
            assert record.reason.startswith("TrainingError: ")
            assert "not finite" in record.reason
            assert record.traceback is not None
            assert "run_trial" in record.traceback
        else:
            assert record.status == "finished"
            assert record.step == 12
    assert [(row.seeds, row.failed, row.nuisance) for row in done.rows] == [
        (2, 2, "learning_rate=0.005")
    ] * 2


def test_the_folder_holds_the_tables_and_one_checkpoint_a_finished_trial(done: Outcome) -> None:
    path = done.folder.path
    assert (path / "table.txt").read_text() == done.table
    assert {"arms.parquet", "trials.parquet", "mlflow.db"} <= {p.name for p in path.iterdir()}
    finished = [record for record in done.records if record.status == "finished"]
    for record in finished:
        assert record.checkpoint is not None
        card = load_checkpoint(path / record.checkpoint).card
        assert card["provenance"]["trial"] == record.trial.id
        assert card["provenance"]["study_digest"] == done.folder.study.digest
        assert card["dataset"]["name"] == "selective_copying"
    kept = {file.parent for file in (path / "ray").rglob("*") if file.is_file()}
    assert kept == {path / record.checkpoint for record in finished if record.checkpoint}
    assert not list((path / "ray").rglob("*.pkl"))


def test_every_run_in_mlflow_has_ended(done: Outcome) -> None:
    assert statuses(done) == {"parent FINISHED": 1, "child FINISHED": 4, "child FAILED": 4}
    (parent,) = (one for one in mlflow_runs(done) if "sma.trial" not in one.data.tags)
    assert "| always |" in parent.data.tags["mlflow.note.content"]


def test_a_trial_on_ray_is_the_trial_without_ray(done: Outcome, tmp_path: Path) -> None:
    record = next(record for record in done.records if record.status == "finished")
    reports: list[tuple[Report, Path | None]] = []
    alone = run_trial(
        record.trial,
        done.folder.dataset_path,
        tmp_path / "trial",
        test_split="test",
        provenance={},
        report=lambda report, folder: reports.append((report, folder)),
    )
    assert record.result is not None
    assert alone is not None
    assert alone.test == record.result.test
    assert alone.activation == record.result.activation
    assert [(report.step, folder is not None) for report, folder in reports] == [
        (4, True),
        (8, True),
        (12, True),
    ]


def test_a_finished_study_is_not_run_again(done: Outcome) -> None:
    log = Log()
    before = {file: file.read_bytes() for file in (done.folder.path / "trials").iterdir()}
    again = run(done.folder.study, done.folder.path, log)
    assert again.complete
    assert log.records == []
    assert {file: file.read_bytes() for file in (done.folder.path / "trials").iterdir()} == before
    assert statuses(again) == {"parent FINISHED": 1, "child FINISHED": 4, "child FAILED": 4}


def test_failed_trials_are_tried_again_when_asked(done: Outcome) -> None:
    log = Log()
    again = experiment.resume(done.folder.path, observers=[log], retry_failed=True)
    assert {record.trial.nuisance["learning_rate"] for record in log.records} == {1e30}
    assert again.count("failed") == 4
    assert statuses(again) == {"parent FINISHED": 1, "child FINISHED": 4, "child FAILED": 4}


def test_the_best_checkpoint_is_exported(done: Outcome, tmp_path: Path) -> None:
    best = experiment.export_best(done.folder.path, tmp_path / "best")
    checkpoint = load_checkpoint(tmp_path / "best")
    assert checkpoint.card["provenance"]["trial"] == best.id
    record = next(record for record in done.records if record.trial.id == best.id)
    assert record.result is not None
    assert record.result.validation["accuracy"] == max(
        r.result.validation["accuracy"] for r in done.records if r.result is not None
    )
    arm = "tempered_softmax @ 0.5"
    assert experiment.export_best(done.folder.path, tmp_path / "arm", arm=arm).arm == arm


def test_a_trial_whose_process_dies_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    study = parse_study(study_text(**LONG).replace('    { kind = "always" },\n', ""), "study.toml")
    killed: list[int] = []

    def kill(record: TrialRecord) -> None:
        if record.checkpoint is None or record.ended or killed or record.step < 100:
            return
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::ImplicitFunc"):
                killed.append(record.step)
                process.kill()

    log = Log(kill)
    disturbed = run(study, tmp_path / "disturbed", log)
    assert len(killed) == 1
    (record,) = disturbed.records
    assert record.status == "finished"
    # It went on from there, not from the beginning, and ended as if nothing had been.
    assert log.reports[record.trial.id].count(20) == 1
    undisturbed = run_trial(
        record.trial,
        disturbed.folder.dataset_path,
        tmp_path / "undisturbed",
        test_split="test",
        provenance={},
        report=lambda report, folder: None,
    )
    assert record.result is not None
    assert undisturbed is not None
    assert record.result.test == undisturbed.test
    assert record.result.activation == undisturbed.activation


def test_two_processes_train_a_trial_as_one_does(tmp_path: Path) -> None:
    study = tiny_study(seeds="seeds = [0]", max_concurrent="processes = 2\nmax_concurrent = 1")
    together = run(study, tmp_path / "together")
    assert together.count("finished") == 2
    for record in together.records:
        alone = run_trial(
            record.trial,
            together.folder.dataset_path,
            tmp_path / record.trial.id,
            test_split="test",
            provenance={},
            report=lambda report, folder: None,
        )
        assert alone is not None
        assert record.result is not None
        assert record.step == 12
        near = TOLERANCES["float32"].relative
        assert record.result.validation == pytest.approx(alone.validation, rel=near)
        assert record.result.test == pytest.approx(alone.test, rel=near)
        assert np.array(record.result.activation) == pytest.approx(
            np.array(alone.activation), rel=near
        )
    # What they met in is gone.
    assert not list((tmp_path / "together" / "ray").rglob("work-*"))


def test_a_trial_that_ray_stops_is_stopped(tmp_path: Path) -> None:
    text = study_text(
        metric='metric = "loss"',
        mode='mode = "min"\n\n[nuisance]\nlearning_rate = [3e-3, 1e-9, 3e-2]\n\n'
        '[scheduler]\nkind = "asha"\ngrace = 4\nreduction = 2',
        max_concurrent="max_concurrent = 1",
    )
    study = parse_study(text.replace('    { kind = "always" },\n', ""), "study.toml")
    done = run(study, tmp_path / "study")
    assert done.complete
    assert [(r.trial.seed, r.status, r.step) for r in done.records] == [
        (0, "finished", 12),
        (0, "stopped", 4),
        (0, "stopped", 4),
        (1, "finished", 12),
        (1, "stopped", 0),
        (1, "stopped", 0),
    ]
    assert [step for step, _ in done.records[0].curve] == [4, 8, 12]
    assert done.records[1].reason == "stopped by ASHA at step 4: others of its arm were better"
    assert statuses(done) == {"parent FINISHED": 1, "child FINISHED": 2, "child KILLED": 2}


@contextmanager
def driver(*arguments: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the command line as typed, in a session of its own; whatever is left dies with it."""
    program = "import sys; from sma_eval.cli import main; sys.argv[0] = 'sma-eval'; main()"
    # mlflow leaves the last store that anything in this process has named in the environment, and
    # the command line would take it for the user's.
    told = ("MLFLOW_TRACKING_URI", "SMA_DATA", "SMA_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**environment, "PYTHONWARNINGS": "default"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path, what: Callable[[Sequence[TrialRecord]], bool]) -> None:
    """Wait until the records of the study are as told."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        if (path / "study.json").exists() and what(Outcome.read(path).records):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path}: not within two minutes")


def test_a_study_survives_ctrl_c_and_kill(tmp_path: Path, ray_address: str) -> None:
    (tmp_path / "study.toml").write_text(study_text(**LONG))
    path = tmp_path / "study"
    address = ("--address", ray_address)

    command = ("run", "study.toml", "--out", "study", "--json", *address)
    with driver(*command, folder=tmp_path) as process:
        wait_for(path, lambda records: records[0].checkpoint is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    counts = json.loads(out)["counts"]
    assert {name: number for name, number in counts.items() if number} == {
        "running": 1,
        "pending": 1,
    }
    assert f"go on with: sma-eval resume {path}" in err
    assert "Traceback" not in err
    interrupted = Outcome.read(path)
    assert statuses(interrupted) == {"parent KILLED": 1, "child KILLED": 1}

    with driver("resume", "study", *address, folder=tmp_path) as process:
        wait_for(path, lambda records: records[1].checkpoint is not None)
        process.kill()
    killed = Outcome.read(path)
    first, second = killed.records
    assert (first.status, second.status) == ("finished", "running")
    assert first.result is not None
    assert first.result.steps == 300
    done = (path / "trials" / f"{first.trial.id}.json").read_bytes()
    assert statuses(killed)["parent RUNNING"] == 1

    log = Log()
    resumed = experiment.resume(path, observers=[log])
    assert resumed.count("finished") == 2
    assert (path / "trials" / f"{first.trial.id}.json").read_bytes() == done
    # Only the trial that was not finished, and of it only what lay past its checkpoint.
    assert {record.trial.id for record in log.records} == {second.trial.id}
    assert second.step <= log.reports[second.trial.id][0] <= second.step + 40
    assert statuses(resumed) == {"parent FINISHED": 1, "child FINISHED": 2}
    client = MlflowClient(tracking_uri=f"sqlite:///{path / 'mlflow.db'}")
    for one in mlflow_runs(resumed):
        history = client.get_metric_history(one.info.run_id, "live/train_loss")
        steps = [metric.step for metric in history]
        # What the killed driver had not written yet is lost; nothing is there twice.
        assert len(set(steps)) == len(steps)
        assert set(steps) <= set(range(20, 301, 20))
        assert ("sma.trial" in one.data.tags) == (300 in steps)


def test_a_trial_that_no_machine_here_can_hold_is_refused(tmp_path: Path) -> None:
    study = tiny_study(max_concurrent="cpus = 100000")
    with pytest.raises(StudyError, match=r"resources\.cpus: a trial takes 100000"):
        run(study, tmp_path)
    assert statuses(Outcome.read(tmp_path)) == {"parent KILLED": 1}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("127.0.0.1:http", "nothing answers there"),
        ("ray://127.0.0.1:10001", "the Ray client cannot follow a study"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named(
    address: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    refused = pytest.raises(StudyError, match=f"--address {address}: {expected}")
    with refused, connected(address, Resources()):
        pass


def test_generated_data_that_was_changed_stops_a_resumed_study(
    done: Outcome, tmp_path: Path
) -> None:
    dataset = PreparedDataset.open(done.folder.dataset_path)
    assert dataset.folder.parent == done.folder.path / DATASETS
    file = dataset.folder / "train.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SMAError, match="train"):
            experiment.resume(done.folder.path)
    finally:
        file.write_bytes(content)
