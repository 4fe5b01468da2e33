"""The command line as typed: one clear line and exit 2 on bad input, results alone on stdout."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.eval.studies import finished, study_text, tiny_study, tiny_trials

from sma_core.checkpoint import load_checkpoint, save_checkpoint
from sma_core.config import config_from_dict
from sma_core.model import build_model
from sma_eval import experiment
from sma_eval.cli import main
from sma_eval.folder import StudyFolder, claimed
from sma_eval.records import TrialRecord


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Typed = Callable[..., Outcome]


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Typed:
    """Type a command in an empty folder that holds ``study.toml``."""
    monkeypatch.chdir(tmp_path)
    for name in ("SMA_DATA", "SMA_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    Path("study.toml").write_text(study_text())

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sma-eval", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study folder: one trial finished, one without memory, one running, one not begun."""
    path = tmp_path / "study"
    path.mkdir()
    made = StudyFolder.create(path, tiny_study(), tiny_trials(), path / "datasets" / "d", "abc")
    done, failed, running, _ = made.trials
    made.write_record(finished(done, 0.75))
    made.write_record(TrialRecord(trial=failed, status="out_of_memory", reason="MemoryError: boom"))
    made.write_record(TrialRecord(trial=running, status="running", step=4))
    checkpoint = finished(done).checkpoint
    assert checkpoint is not None
    model = build_model(config_from_dict(done.model))
    (path / checkpoint).parent.mkdir(parents=True)
    save_checkpoint(path / checkpoint, model, provenance={"trial": done.id})
    return made


def test_a_dry_run_lists_the_trials_and_writes_nothing(typed: Typed, tmp_path: Path) -> None:
    done = typed("run", "study.toml", "--dry-run")
    assert done.code == 0
    head, *listed, cost, duration = done.out.splitlines()
    assert head.endswith(": 4 trials")
    assert [line.split("  ")[-1] for line in listed] == [trial.label for trial in tiny_trials()]
    assert cost.startswith("cost: 48 optimiser steps over 3,072 time steps")
    assert duration.startswith("time: about ")
    document = json.loads(typed("run", "study.toml", "--dry-run", "--json").out)
    assert document["cost"]["trials"] == 4
    assert [trial["id"] for trial in document["trials"]] == [trial.id for trial in tiny_trials()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ({"seeds": "seeds = [-1]"}, "study.toml: seeds[0]: "),
        ({"max_steps": "max_steps = 0"}, "training.max_steps: must be at least 1"),
        ({"name": 'name = "../../up"'}, "study.toml: name: "),
        ({"max_steps": "max_steps = nan"}, "training.max_steps: must be text, a finite number"),
    ],
)
def test_a_bad_study_is_one_line_and_exit_two(
    typed: Typed, study: dict[str, str], expected: str
) -> None:
    Path("study.toml").write_text(study_text(**study))
    done = typed("run", "study.toml", "--out", "out")
    assert done.code == 2
    assert done.out == ""
    assert expected in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "absent.toml"), "absent.toml: cannot read the study"),
        (("run", "."), "cannot read the study"),
        (("run", "study.toml", "--out", "study.toml"), "cannot be used as a study folder"),
        (("run", "study.toml", "--out", "study.toml/below"), "cannot be used as a study folder"),
        (("resume", "absent"), "no study folder"),
        (("status", "absent"), "no study folder"),
        (("report", "."), "no study folder"),
        (("best", "absent", "--export", "best"), "no study folder"),
        (
            ("best", "study", "--export", "b", "--arm", "none"),
            "--arm 'none': the study has 'always'",
        ),
        (("best", "study", "--export", "study"), "study: is not empty"),
        (("best", "study", "--export", "study.toml"), "study.toml: is not empty"),
        (
            ("best", "study", "--export", "b", "--arm", "tempered_softmax @ 0.5"),
            "no trial has finished",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_input_is_one_line_and_exit_two(
    typed: Typed, arguments: tuple[str, ...], expected: str
) -> None:
    done = typed(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(("error: ", "study tiny"))
    assert expected in done.err.splitlines()[-1]


def test_a_foreign_folder_stays_as_it_was(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    done = typed("run", "study.toml", "--out", "thesis")
    assert done.code == 2
    assert "not empty (it holds 'thesis.tex')" in done.err
    assert [entry.name for entry in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_an_absent_data_set_is_named_and_nothing_is_written(typed: Typed, tmp_path: Path) -> None:
    head, _, tail = study_text(metric='metric = "loss"', mode='mode = "min"').partition("[task]")
    task = '[task]\nkind = "prepared"\ndataset = "nowhere"\nhead = "forecast"\n\n[model]'
    Path("study.toml").write_text(head + task + tail.partition("[model]")[2])
    for options in (("--out", "out"), ("--dry-run",)):
        done = typed("run", "study.toml", "--data", "logs", *options)
        assert done.code == 2
        assert str(Path("logs") / "nowhere") in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


def test_a_folder_in_use_is_refused(typed: Typed, folder: StudyFolder) -> None:
    with claimed(folder.path):
        done = typed("resume", "study")
        assert done.code == 2
        assert "another process runs this study" in done.err
        assert "a driver is at work" in typed("status", "study").out
        assert json.loads(typed("status", "study", "--json").out)["active"] is True


def test_a_changed_study_is_refused_in_its_old_folder(typed: Typed, folder: StudyFolder) -> None:
    Path("study.toml").write_text(study_text(max_steps="max_steps = 13"))
    done = typed("run", "study.toml", "--out", "study")
    assert done.code == 2
    assert "give the changed study a folder of its own with --out" in done.err
    assert StudyFolder.open(folder.path) == folder


def test_status_says_how_far_it_is(typed: Typed, folder: StudyFolder) -> None:
    done = typed("status", "study")
    assert done.code == 0
    assert done.out.splitlines() == [
        "tiny: 4 trials: 1 finished, 1 out of memory, 1 running, 1 pending",
        "  tempered_softmax @ 0.5 seed=0: out of memory: MemoryError: boom",
        "  always seed=1: step 4 of 12",
        "no driver is at work; go on with: sma-eval resume study",
    ]
    document = json.loads(typed("status", "study", "--json").out)
    assert document["counts"] == {
        "finished": 1,
        "failed": 0,
        "diverged": 0,
        "out_of_memory": 1,
        "lost": 0,
        "stopped": 0,
        "running": 1,
        "pending": 1,
    }
    assert [trial["status"] for trial in document["trials"]] == [
        *("finished", "out_of_memory", "running", "pending")
    ]


def test_status_counts_stopped_trials_and_those_yet_to_be_asked_for(
    typed: Typed, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    search = '[search]\nkind = "optuna"\nsamples = 3\nbatch = 1'
    changes = {
        "mode": f'mode = "max"\n\n[nuisance]\nlearning_rate = [1e-3, 1e-2, 1e-1]\n\n{search}'
    }
    path = tmp_path / "searched"
    path.mkdir()
    trials = tiny_trials(**changes)
    made = StudyFolder.create(path, tiny_study(**changes), trials, path / "datasets" / "d", "abc")
    made.write_record(TrialRecord(trial=trials[0], status="stopped", step=4, reason="others led"))
    for trial in trials[1:]:
        made.write_record(finished(trial))
    done = typed("status", "searched")
    assert done.out.splitlines() == [
        "tiny: 12 trials: 3 finished, 1 stopped, 8 pending",
        "no driver is at work; go on with: sma-eval resume searched",
    ]
    document = json.loads(typed("report", "searched", "--json").out)
    assert document["arms"][0]["stopped"] == 1
    assert document["efforts"][0]["stopped"] == 1
    assert "others of the arm were better: 1 of the trials" in typed("report", "searched").out
    Path("study.toml").write_text(study_text(**changes))
    head = typed("run", "study.toml", "--dry-run").out.splitlines()[0]
    assert head.endswith("12 trials (the first 4 are known, Optuna asks for the others)")


def test_report_prints_the_table_and_writes_the_page(typed: Typed, folder: StudyFolder) -> None:
    table = experiment.Outcome.read(folder.path).table
    assert typed("report", "study") == (0, table, "report: study/report.html\n")
    assert Path("study/table.txt").read_text() == table
    assert typed("report", "study", "--out", "there").err == "report: there/report.html\n"
    assert Path("there/report.html").exists()
    Path("taken").write_text("")
    done = typed("report", "study", "--out", "taken")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: taken: ")


@pytest.mark.usefixtures("folder")
def test_report_prints_one_document(typed: Typed) -> None:
    document = json.loads(typed("report", "study", "--json").out)
    assert document["study"] == "tiny"
    assert document["objective"] == {"metric": "accuracy", "mode": "max"}
    assert [(arm["arm"], arm["objective_mean"]) for arm in document["arms"]] == [
        ("always", 0.75),
        ("tempered_softmax @ 0.5", None),
    ]
    assert document["findings"]["best"] == "always"
    assert document["conclusion"][0].startswith("One seed an arm")
    assert document["conclusion"][-1] in Path("study/table.txt").read_text()


@pytest.mark.usefixtures("folder")
def test_best_exports_a_checkpoint(typed: Typed) -> None:
    assert typed("best", "study", "--export", "b") == (0, "always seed=0: b\n", "")
    assert load_checkpoint(Path("b")).card["provenance"]["trial"] == tiny_trials()[0].id
    assert typed("best", "study", "--export", "b").code == 2
    done = typed("best", "study", "--export", "b", "--force", "--json")
    assert json.loads(done.out) == {
        "trial": tiny_trials()[0].id,
        "label": "always seed=0",
        "checkpoint": "b",
    }


@pytest.mark.usefixtures("folder")
def test_a_checkpoint_that_was_changed_is_not_exported(typed: Typed) -> None:
    (weights,) = Path("study/ray").rglob("weights.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = typed("best", "study", "--export", "b")
    assert done.code == 2
    assert "weights.safetensors" in done.err
    assert not Path("b").exists()


def test_the_installed_command_runs() -> None:
    program = Path(sys.executable).with_name("sma-eval")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for name in ("run", "resume", "submit", "status", "report", "best"):
        assert name in done.stdout
