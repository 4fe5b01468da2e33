"""The study folder: one driver at a time, nothing foreign touched, nothing damaged believed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.eval.studies import finished, tiny_study, tiny_trials

from sma_eval import experiment
from sma_eval.errors import FolderError
from sma_eval.folder import RAY, STUDY_FILE, TRIALS, StudyFolder, claimed, in_use
from sma_eval.records import TrialRecord

HOLD = """
import sys
from pathlib import Path
from sma_eval.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    path = tmp_path / "study"
    path.mkdir()
    return StudyFolder.create(path, tiny_study(), tiny_trials(), path / "datasets" / "d", "abc")


def edit(folder: StudyFolder, **changes: Any) -> None:
    file = folder.path / STUDY_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_is_read_back_as_it_was_made_and_may_be_moved(folder: StudyFolder) -> None:
    assert StudyFolder.open(folder.path) == folder
    moved = folder.path.rename(folder.path.with_name("moved"))
    assert StudyFolder.open(moved).key == folder.key
    assert StudyFolder.open(moved).dataset_path == moved / "datasets" / "d"


def test_only_one_driver_has_it_and_a_dead_one_has_it_no_more(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert in_use(tmp_path / "s")
        with (
            pytest.raises(FolderError, match="another process runs this study"),
            claimed(tmp_path / "s"),
        ):
            pass
        other.kill()
    assert not in_use(tmp_path / "s")
    with claimed(tmp_path / "s"):
        assert in_use(tmp_path / "s")
    assert not in_use(tmp_path / "s")
    assert not in_use(tmp_path / "absent")


def test_a_foreign_folder_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(FolderError, match=r"not empty \(it holds 'thesis\.tex'\)"),
        claimed(tmp_path),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_where_no_folder_can_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FolderError, match="cannot be used as a study folder"), claimed(path):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_place_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="Permission denied"), claimed(tmp_path / "s"):
        pass


def test_a_changed_study_is_refused_and_changed_resources_are_not(folder: StudyFolder) -> None:
    slower = tiny_study(max_concurrent="max_concurrent = 1")
    assert folder.reopened(slower).study.resources.max_concurrent == 1
    assert StudyFolder.open(folder.path).study == slower
    with pytest.raises(FolderError, match=r"give the changed study a folder of its own with --out"):
        folder.reopened(tiny_study(max_steps="max_steps = 13"))


def test_a_study_edited_in_its_folder_is_refused(folder: StudyFolder) -> None:
    study = json.loads((folder.path / STUDY_FILE).read_text())["study"]
    edit(folder, study=study | {"seeds": [0, 1, 2]})
    with pytest.raises(FolderError, match="changed after it was frozen"):
        StudyFolder.open(folder.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "sma.pilot"},
        {"version": 2},
        {"study": {}},
        {"trials": [{"id": 1}]},
        {"dataset": 3},
    ],
)
def test_what_is_no_frozen_study_is_told_apart(
    folder: StudyFolder, changes: dict[str, Any]
) -> None:
    edit(folder, **changes)
    with pytest.raises(FolderError, match="not a frozen study of this version"):
        StudyFolder.open(folder.path)


@pytest.mark.parametrize("content", ["", "[]", "\x00", "[" * 100_000])
def test_a_file_that_is_no_card_is_told_apart(folder: StudyFolder, content: str) -> None:
    (folder.path / STUDY_FILE).write_text(content)
    with pytest.raises(FolderError, match="not a frozen study of this version"):
        StudyFolder.open(folder.path)


def test_no_folder_at_all_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no study folder"):
        StudyFolder.open(tmp_path / "absent")


def test_a_data_set_that_changed_is_refused(folder: StudyFolder) -> None:
    folder.require_dataset("abc")
    with pytest.raises(FolderError, match="has changed since the study began"):
        folder.require_dataset("abd")


def test_records_are_read_back_and_absent_ones_are_pending(folder: StudyFolder) -> None:
    first, second, *_ = folder.trials
    done = finished(first, 0.25)
    failed = TrialRecord(trial=second, status="failed", reason="boom", traceback="...")
    folder.update(done, None)
    folder.update(failed, None)
    records = folder.read_records()
    assert records[:2] == [done, failed]
    assert [record.status for record in records[2:]] == ["pending", "pending"]


@pytest.mark.parametrize("content", ["", "{}", '{"trial": 3}', "null", "\x00"])
def test_a_damaged_record_is_named_with_the_way_out(folder: StudyFolder, content: str) -> None:
    file = folder.path / TRIALS / f"{folder.trials[0].id}.json"
    file.write_text(content)
    with pytest.raises(FolderError, match=r"damaged record .* delete the file") as caught:
        folder.read_records()
    assert str(file) in str(caught.value)


def test_a_record_of_another_trial_is_damage(folder: StudyFolder) -> None:
    first, second, *_ = folder.trials
    folder.write_record(finished(first))
    file = folder.path / TRIALS
    (file / f"{first.id}.json").rename(file / f"{second.id}.json")
    with pytest.raises(FolderError, match="damaged record"):
        folder.read_records()


def test_attempts_are_never_written_into_twice(folder: StudyFolder) -> None:
    assert folder.new_attempt() == "attempt-000"
    for name in ("attempt-000", "attempt-002"):
        (folder.path / RAY / name).mkdir(parents=True)
    assert folder.new_attempt() == "attempt-001"
    (folder.path / RAY / "attempt-001").mkdir()
    assert folder.new_attempt() == "attempt-003"


def test_pruning_keeps_the_checkpoints_that_records_name(folder: StudyFolder) -> None:
    done = finished(folder.trials[0])
    assert done.checkpoint is not None
    kept = folder.path / done.checkpoint / "model.json"
    overtaken = folder.path / RAY / "attempt-000" / folder.trials[1].id / "checkpoint_000000"
    state = folder.path / RAY / "attempt-000" / "tuner.pkl"
    kept.parent.mkdir(parents=True)
    overtaken.mkdir(parents=True)
    for file in (kept, state, kept.parents[1] / "params.pkl", overtaken / "model.json"):
        file.touch()
    folder.prune([done])
    assert kept.exists()
    assert sorted(p.name for p in (folder.path / RAY).rglob("*") if p.is_file()) == ["model.json"]


def test_studies_share_generated_data_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "_carry_out", lambda folder, *rest, **options: folder)
    for name in ("one", "two"):
        experiment.run(tiny_study(), data=Path(), out=tmp_path / name, cache=tmp_path / "cache")
    one, two = (StudyFolder.open(tmp_path / name) for name in ("one", "two"))
    assert one.dataset_path == two.dataset_path
    assert one.dataset_path.parent == tmp_path / "cache"
    assert not (tmp_path / "one" / "datasets").exists()
    experiment.run(tiny_study(), data=Path(), out=tmp_path / "three")
    three = StudyFolder.open(tmp_path / "three")
    assert three.dataset_path.parent == tmp_path / "three" / "datasets"
    assert three.dataset_digest == one.dataset_digest
