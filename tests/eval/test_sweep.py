"""Studies on Ray, whole: what finishes, what fails, what dies and goes on.

One study is run undisturbed; then a node dies under it, then its driver. Every trial of it must end
the same way, with the same figures.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tests.eval.studies import MLFLOW_WARNING, study_text, tiny_study
from tests.slow import slow
from tests.tolerances import TOLERANCES

from sma_core.checkpoint import load_checkpoint
from sma_core.dataset import PreparedDataset
from sma_core.errors import SMAError
from sma_eval import experiment, sweep
from sma_eval.cli import main
from sma_eval.console import ConsoleProgress
from sma_eval.entries import STUDY_TAG
from sma_eval.errors import StudyError
from sma_eval.experiment import Outcome
from sma_eval.failures import FAILURES
from sma_eval.folder import DATASETS
from sma_eval.records import Report, TrialRecord
from sma_eval.resources import Resources
from sma_eval.rounds import Round
from sma_eval.study import Study, parse_study
from sma_eval.sweep import connected, tuning
from sma_eval.trial import run_trial

pytestmark = [
    pytest.mark.usefixtures("ray_address"),
    pytest.mark.filterwarnings(MLFLOW_WARNING),
]

# Two arms that train, each also with a learning rate that no training survives; and two whose
# weights no machine holds. A trial that trains is long enough to be stopped on the way.
STUDY = {
    "mode": 'mode = "max"\n\n[nuisance]\nlearning_rate = [5e-3, 1e30]',
    "pool": """pool = [
        [{ kind = "gated_attention", query_width = 4, value_width = 8, window = 8 }],
        [{ kind = "swiglu", hidden_width = 17592186044416 }],
    ]""",
    "seeds": "seeds = [0]",
    "max_steps": "max_steps = 100",
    "evaluate_every": "evaluate_every = 50",
    "checkpoint_every": "checkpoint_every = 20",
    "max_concurrent": "max_concurrent = 1",
}
REPORTS = [20, 40, 50, 60, 80, 100]
COUNTS = {"finished": 2, "diverged": 2, "out_of_memory": 4}


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


def run(study: Study, out: Path, *observers: Any, store: str | None = None) -> Outcome:
    return experiment.run(study, data=Path(), out=out, tracking_uri=store, observers=observers)


def mlflow_runs(outcome: Outcome, store: str) -> list[Run]:
    client = MlflowClient(tracking_uri=store)
    experiment_ = client.get_experiment_by_name(f"sma-eval/{outcome.folder.study.name}")
    assert experiment_ is not None
    found = client.search_runs([experiment_.experiment_id])
    assert {one.data.tags[STUDY_TAG] for one in found} == {outcome.folder.key}
    return list(found)


def statuses(outcome: Outcome, store: str) -> dict[str, int]:
    """Count the runs by status, the parent's apart."""
    counts: dict[str, int] = {}
    for one in mlflow_runs(outcome, store):
        who = "child" if "mlflow.parentRunId" in one.data.tags else "parent"
        name = f"{who} {one.info.status}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def reported_steps(run: Run, store: str) -> list[int]:
    history = MlflowClient(tracking_uri=store).get_metric_history(
        run.info.run_id, "live/train_loss"
    )
    return [metric.step for metric in history]


def ends(outcome: Outcome) -> dict[str, Any]:
    """Return how each trial ended, by its id, and every figure that is not of time."""
    figures = ("validation", "test", "activation", "flops_per_step", "parameters", "best_step")
    return {
        record.trial.id: (
            record.status,
            record.reason,
            record.result and [getattr(record.result, name) for name in figures],
        )
        for record in outcome.records
    }


def finished(outcome: Outcome) -> Sequence[TrialRecord]:
    return [record for record in outcome.records if record.status == "finished"]


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_address: str, log: Log) -> Outcome:
    """Run the study undisturbed, into the store that it makes for itself."""
    return run(tiny_study(**STUDY), tmp_path_factory.mktemp("done"), log)


@pytest.fixture
def done_store(done: Outcome) -> str:
    return f"sqlite:///{done.folder.path / 'mlflow.db'}"


def test_the_shipped_smoke_study_runs_from_end_to_end(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Path(__file__).parents[2] / "experiments" / "studies" / "smoke.toml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys,
        "argv",
        ["sma-eval", "run", str(study), "--smoke-test", "--json", "--tracking-uri", store],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["study"], told["counts"]["finished"]) == ("smoke-smoke", 6)
    assert [arm["seeds"] for arm in told["arms"]] == [1] * 6
    outcome = Outcome.read(tmp_path / "runs" / "smoke-smoke")
    assert {record.step for record in outcome.records} == {4}
    assert statuses(outcome, store) == {"parent FINISHED": 1, "child FINISHED": 6}
    assert (outcome.folder.path / "report.html").is_file()


def test_a_trial_that_throws_is_recorded_and_the_others_go_on(done: Outcome) -> None:
    assert done.complete
    assert {name: n for name in ("finished", *FAILURES) if (n := done.count(name))} == COUNTS
    for record in done.records:
        if record.trial.pool.startswith("swiglu"):
            assert record.status == "out_of_memory"
            assert record.reason is not None
            assert record.reason.startswith("RuntimeError: ")
        elif record.trial.nuisance["learning_rate"] == 1e30:
            assert record.status == "diverged"
            assert record.reason is not None
            assert record.reason.startswith("DivergenceError: step 2: the gradient is not finite")
            assert record.traceback is not None
            assert "run_trial" in record.traceback
        else:
            assert record.status == "finished"
            assert record.step == 100
    assert [(row.seeds, row.failed, row.nuisance) for row in done.rows] == [
        (1, 1, "learning_rate=0.005"),
        (0, 2, ""),
    ] * 2


def test_the_folder_holds_the_tables_and_one_checkpoint_a_finished_trial(done: Outcome) -> None:
    path = done.folder.path
    assert (path / "table.txt").read_text() == done.table
    assert {"arms.parquet", "trials.parquet", "mlflow.db"} <= {p.name for p in path.iterdir()}
    for record in finished(done):
        assert record.checkpoint is not None
        card = load_checkpoint(path / record.checkpoint).card
        assert card["provenance"]["trial"] == record.trial.id
        assert card["provenance"]["study_digest"] == done.folder.study.digest
        assert card["dataset"]["name"] == "selective_copying"
    kept = {file.parent for file in (path / "ray").rglob("*") if file.is_file()}
    assert kept == {path / record.checkpoint for record in finished(done) if record.checkpoint}
    assert not list((path / "ray").rglob("*.pkl"))


def test_every_run_in_mlflow_has_ended(done: Outcome, done_store: str) -> None:
    assert statuses(done, done_store) == {
        "parent FINISHED": 1,
        "child FINISHED": 2,
        "child FAILED": 6,
    }
    tags = [one.data.tags for one in mlflow_runs(done, done_store)]
    told = [tag["sma.status"] for tag in tags if "sma.status" in tag]
    assert {status: told.count(status) for status in set(told)} == COUNTS
    (parent,) = (tag for tag in tags if "sma.trial" not in tag)
    assert "\n\n| arm | nuisance | accuracy |" in parent["mlflow.note.content"]


def test_every_report_passes_the_driver_once(done: Outcome, done_store: str, log: Log) -> None:
    assert log.reports == {record.trial.id: REPORTS for record in finished(done)}
    for one in mlflow_runs(done, done_store):
        trained = one.data.tags.get("sma.status") == "finished"
        assert reported_steps(one, done_store) == (REPORTS if trained else [])


def test_a_trial_on_ray_is_the_trial_without_ray(done: Outcome, tmp_path: Path) -> None:
    record = finished(done)[0]
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
        (step, step != 50) for step in REPORTS
    ]


def test_a_finished_study_is_not_run_again(done: Outcome, done_store: str) -> None:
    again_log = Log()
    before = {file: file.read_bytes() for file in (done.folder.path / "trials").iterdir()}
    runs = statuses(done, done_store)
    again = run(done.folder.study, done.folder.path, again_log)
    assert again.complete
    assert again_log.records == []
    assert {file: file.read_bytes() for file in (done.folder.path / "trials").iterdir()} == before
    assert statuses(again, done_store) == runs


def test_the_best_checkpoint_is_exported(done: Outcome, tmp_path: Path) -> None:
    best = experiment.export_best(done.folder.path, tmp_path / "best")
    checkpoint = load_checkpoint(tmp_path / "best")
    assert checkpoint.card["provenance"]["trial"] == best.id
    record = next(record for record in done.records if record.trial.id == best.id)
    assert record.result is not None
    assert record.result.validation["accuracy"] == max(
        r.result.validation["accuracy"] for r in done.records if r.result is not None
    )
    arm = finished(done)[1].trial.arm
    assert experiment.export_best(done.folder.path, tmp_path / "arm", arm=arm).arm == arm


@slow
def test_a_node_that_dies_changes_no_figure(
    done: Outcome,
    lose_node: Callable[[int], None],
    tmp_path: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers: dict[str, int] = {}

    class Watched(tuning._Relay):
        def on_trial_result(self, *event: Any, **info: Any) -> None:
            workers[info["trial"].config["trial"]] = info["result"]["pid"]
            super().on_trial_result(*event, **info)

    lost: list[TrialRecord] = []

    def lose(record: TrialRecord) -> None:
        if record.step >= 50 and record.checkpoint is not None and not record.ended and not lost:
            lost.append(record)
            lose_node(workers[record.trial.id])

    monkeypatch.setattr(tuning, "_Relay", Watched)
    text = study_text(**{**STUDY, "max_concurrent": "max_concurrent = 2"})
    log = Log(lose)
    disturbed = run(parse_study(text, "study.toml"), tmp_path / "study", log, store=store)
    assert ends(disturbed) == ends(done)
    # It went on from its checkpoint, not from the beginning, and repeated less than an interval.
    (dead,) = lost
    steps = log.reports[dead.trial.id]
    assert sorted(set(steps)) == REPORTS
    repeated = [step for step in set(steps) if steps.count(step) > 1]
    assert not repeated or max(repeated) - min(repeated) < 20
    assert 20 not in repeated
    assert statuses(disturbed, store) == {
        "parent FINISHED": 1,
        "child FINISHED": 2,
        "child FAILED": 6,
    }


@slow
def test_two_processes_train_a_trial_as_one_does(tmp_path: Path, store: str) -> None:
    study = tiny_study(seeds="seeds = [0]", max_concurrent="processes = 2\nmax_concurrent = 1")
    together = run(study, tmp_path / "together", store=store)
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


@slow
def test_a_trial_that_ray_stops_is_stopped(tmp_path: Path, store: str) -> None:
    text = study_text(
        metric='metric = "loss"',
        mode='mode = "min"\n\n[nuisance]\nlearning_rate = [3e-3, 1e-9, 3e-2]\n\n'
        '[scheduler]\nkind = "asha"\ngrace = 4\nreduction = 2',
        max_concurrent="max_concurrent = 1",
    )
    study = parse_study(text.replace('    { kind = "always" },\n', ""), "study.toml")
    done = run(study, tmp_path / "study", store=store)
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
    assert statuses(done, store) == {"parent FINISHED": 1, "child FINISHED": 2, "child KILLED": 2}


# The command line as typed, in a process of its own that dies by SIGKILL as soon as the trial has
# reported step 60: all that it knows of the trial since its checkpoint after step 40 is lost.
KILLED = """
import os, signal, sys
from sma_eval.cli import main
from sma_eval.console import ConsoleProgress

doomed = sys.argv.pop(1)

def update(self, record, report):
    if record.trial.id == doomed and report is not None and report.step == 60:
        os.kill(os.getpid(), signal.SIGKILL)

ConsoleProgress.update = update
main()
"""


@slow
def test_a_study_survives_ctrl_c_and_kill(
    done: Outcome,
    tmp_path: Path,
    store: str,
    ray_address: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "study.toml").write_text(study_text(**STUDY))
    path = tmp_path / "study"
    first, second = (record.trial.id for record in finished(done))
    monkeypatch.chdir(tmp_path)

    def interrupt(self: ConsoleProgress, record: TrialRecord, report: Report | None) -> None:
        if report is not None and report.step == 60:
            os.kill(os.getpid(), signal.SIGINT)

    command = ("run", "study.toml", "--out", "study", "--json", "--tracking-uri", store)
    with monkeypatch.context() as typed:
        typed.setattr(ConsoleProgress, "update", interrupt)
        typed.setattr(sys, "argv", ["sma-eval", *command])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capfd.readouterr()
    assert ended.value.code == 130, err
    counts = json.loads(out)["counts"]
    assert {name: n for name, n in counts.items() if n} == {"running": 1, "pending": 7}
    assert f"go on with: sma-eval resume {path}" in err
    assert "Traceback" not in err
    assert statuses(Outcome.read(path), store) == {"parent KILLED": 1, "child KILLED": 1}

    resume = ("resume", "study", "--address", ray_address, "--tracking-uri", store)
    resumed = subprocess.run(
        [sys.executable, "-c", KILLED, second, *resume],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert resumed.returncode == -signal.SIGKILL, resumed.stderr
    killed = {record.trial.id: record for record in Outcome.read(path).records}
    assert killed[first].status == "finished"
    assert (killed[second].status, killed[second].step) == ("running", 60)
    before = (path / "trials" / f"{first}.json").read_bytes()
    assert statuses(Outcome.read(path), store)["parent RUNNING"] == 1

    log = Log()
    finally_ = experiment.resume(path, tracking_uri=store, observers=[log], retry_failed=True)
    assert ends(finally_) == ends(done)
    assert (path / "trials" / f"{first}.json").read_bytes() == before
    # All but the trial that had finished, failed ones again, and of the one that was killed what
    # lay past its checkpoint.
    assert {record.trial.id for record in log.records} == ends(done).keys() - {first}
    assert log.reports == {second: [50, 60, 80, 100]}
    assert statuses(finally_, store) == {
        "parent FINISHED": 1,
        "child FINISHED": 2,
        "child FAILED": 6,
    }
    for one in mlflow_runs(finally_, store):
        steps = reported_steps(one, store)
        # What the killed driver had not written yet is lost; nothing is there twice.
        assert len(set(steps)) == len(steps)
        assert set(steps) <= set(REPORTS)
        assert (one.data.tags.get("sma.status") == "finished") == (100 in steps)


@slow
def test_a_failed_trial_that_finishes_at_last_has_no_reason_left(
    done: Outcome, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    shutil.copytree(done.folder.path, study)
    good = finished(done)[0]

    def mended(
        study: Study, now: Round, *records: Any, observers: Sequence[Any], **rest: Any
    ) -> None:
        for record in now.todo:
            for observer in observers:
                observer.update(replace(record, status="finished", result=good.result), None)

    monkeypatch.setattr(sweep, "sweep", mended)
    again = experiment.resume(study, tracking_uri=store, retry_failed=True)
    assert again.count("finished") == len(again.records)
    assert {(record.reason, record.traceback) for record in again.records} == {(None, None)}
    notes = [one.data.tags["mlflow.note.content"] for one in mlflow_runs(again, store)]
    assert notes.count("") == 8
    assert statuses(again, store) == {"parent FINISHED": 1, "child FINISHED": 8}


def test_a_trial_that_no_machine_here_can_hold_is_refused(tmp_path: Path, store: str) -> None:
    study = tiny_study(max_concurrent="cpus = 100000")
    with pytest.raises(StudyError, match=r"resources\.cpus: a trial takes 100000"):
        run(study, tmp_path / "study", store=store)
    assert statuses(Outcome.read(tmp_path / "study"), store) == {"parent KILLED": 1}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("127.0.0.1:http", "nothing answers there"),
        ("ray://127.0.0.1:1", "nothing answers there"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named(
    address: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    refused = pytest.raises(StudyError, match=f"--address {address}: {expected}")
    with refused, connected(address, Resources(), tmp_path):
        pass


def test_generated_data_that_was_changed_stops_a_resumed_study(done: Outcome) -> None:
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
