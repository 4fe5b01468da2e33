"""Each change of a signed run is found, and what was not changed is not accused."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.pilot.decision_cases import (
    flip,
    give,
    make_quick,
    records,
)

from sma_pilot.decision import signing
from sma_pilot.decision.record import Decision, load_decisions, write_decision
from sma_pilot.decision.verification import Verification, verify
from sma_pilot.errors import RunError
from sma_pilot.report.page import write_report
from sma_pilot.run_folder import RunFolder

ARMS = ("baseline", "candidate", "incumbent", "incumbent_again")
FILES = (
    "plan.json",
    "result.json",
    "report.html",
    "dataset/dataset.json",
    *(f"dataset/{split}.safetensors" for split in ("train", "validation", "judged")),
    "models/candidate/model.json",
    "models/candidate/weights.safetensors",
    "replay/replay.json",
    *(f"replay/{kind}/part-{a}-00000.parquet" for kind in ("scores", "latency") for a in ARMS),
    "replay/routing/part-candidate-00000.parquet",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def thrice(judged: dict[str, RunFolder], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was signed three times; a test puts back what it changes."""
    path = shutil.copytree(judged["go"].path, tmp_path_factory.mktemp("thrice") / "run")
    run = RunFolder(Path(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing, "draw", lambda evidence: {})
        give(run)
        give(run, "no-go", "The supplier withdrew.", override=True)
        give(run, reason="The supplier is back.")
    return run


@pytest.fixture
def signed(thrice: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that was signed three times."""
    return RunFolder(Path(shutil.copytree(thrice.path, tmp_path / "runs" / "signed")))


def test_a_signed_run_is_intact(thrice: RunFolder) -> None:
    found = verify(thrice)
    assert found.is_intact
    assert set(found.unchanged) == set(FILES)
    assert [own.decision for own in found.decisions] == ["go", "no-go", "go"]
    assert found.to_text().startswith(f"intact   {len(FILES)} files")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_of_any_file_is_found(thrice: RunFolder, name: str) -> None:
    path = thrice.path / name
    size = path.stat().st_size
    for place in (0, size // 2, size - 1):
        flip(path, place)
        found = verify(thrice)
        flip(path, place)
        assert not found.is_intact
        assert found.changed == (name,)
        assert (found.missing, found.new, found.faults) == ((), (), ())
        assert f"changed  {name}\n" in found.to_text()
        assert "NOT the run that was signed" in found.to_text()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flipped_bit_anywhere_in_a_record_is_found(thrice: RunFolder, number: int) -> None:
    path = records(thrice)[number - 1]
    for place in range(0, path.stat().st_size, 97):
        flip(path, place)
        found = verify(thrice)
        flip(path, place)
        assert not found.is_intact, place
        assert any(path.name in fault for fault in found.faults), place


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_taken_away_is_found(thrice: RunFolder, tmp_path: Path, name: str) -> None:
    shutil.move(thrice.path / name, tmp_path / "away")
    found = verify(thrice)
    shutil.move(tmp_path / "away", thrice.path / name)
    assert (found.missing, found.changed) == ((name,), ())


@pytest.mark.parametrize(
    "name", ["notes.txt", "replay/scores/part-candidate-00001.parquet", "models/candidate/x"]
)
def test_a_file_that_was_added_is_found(thrice: RunFolder, name: str) -> None:
    (thrice.path / name).write_text("more")
    found = verify(thrice)
    (thrice.path / name).unlink()
    assert found.new == (name,)
    assert not found.is_intact


def test_what_a_stopped_writer_left_is_no_change(thrice: RunFolder) -> None:
    drafts = [thrice.path / ".report.html.123", thrice.decisions / ".0004-aa.json.partial"]
    for draft in drafts:
        draft.write_text("half")
    found = verify(thrice)
    for draft in drafts:
        draft.unlink()
    assert found.is_intact


def test_linked_folders_are_sealed_too(run: RunFolder, tmp_path: Path) -> None:
    run.dataset.rename(tmp_path / "elsewhere")
    run.dataset.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    give(run)
    flip(tmp_path / "elsewhere" / "train.safetensors", -1)
    assert verify(run).changed == ("dataset/train.safetensors",)


def without_record(number: int, thrice: RunFolder, tmp_path: Path) -> tuple[Verification, str]:
    """Verify with one record taken away; return the hash of that record, too."""
    path = records(thrice)[number - 1]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.move(path, tmp_path / path.name)
    found = verify(thrice)
    certain = verify(thrice, sha256[:12])
    shutil.move(tmp_path / path.name, path)
    assert any(sha256[:12] in fault for fault in certain.faults)
    assert verify(thrice, sha256).is_intact
    return found, sha256


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_taken_from_the_chain_is_found(
    thrice: RunFolder, tmp_path: Path, number: int
) -> None:
    found, _ = without_record(number, thrice, tmp_path)
    assert any(f"decision {number} is missing" in fault for fault in found.faults)


def test_the_newest_record_taken_away_leaves_a_page_that_was_not_signed(
    thrice: RunFolder, tmp_path: Path
) -> None:
    found, _ = without_record(3, thrice, tmp_path)
    assert found.changed == ("report.html",)


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_written_anew_breaks_the_chain(thrice: RunFolder, number: int) -> None:
    """Its name may be made to fit; the record after it still holds the hash of the first one."""
    path = records(thrice)[number - 1]
    content = path.read_bytes()
    forged = Decision.model_validate_json(content).model_copy(update={"by": "Somebody else"})
    path.unlink()
    write_decision(thrice, forged)
    found = verify(thrice)
    (thrice.decisions / forged.file_name).unlink()
    path.write_bytes(content)
    assert [fault for fault in found.faults if "does not follow" in fault]
    assert records(thrice)[number].name in found.faults[0]


def test_the_newest_record_written_anew_is_found_by_the_hash_kept_elsewhere(
    signed: RunFolder,
) -> None:
    newest = load_decisions(signed)[-1]
    (signed.decisions / newest.file_name).unlink()
    write_decision(signed, newest.model_copy(update={"by": "Somebody else"}))
    assert verify(signed).is_intact, "a chain without a secret cannot tell"
    assert "removed, or written anew" in verify(signed, newest.sha256).faults[0]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.rename(path.with_name("0007" + path.name[4:])), "decision 1 is missing"),
        (lambda path: path.with_name("notes.txt").write_text("x"), "not a record of a decision"),
        (lambda path: path.write_text("{"), "changed"),
        (lambda path: path.write_text(path.read_text() + " "), "has not the hash in its name"),
        (lambda path: path.with_name("0001-" + "0" * 64 + ".json").write_text("{}"), "beside it"),
    ],
)
def test_records_that_are_none_are_named_and_nothing_is_signed_upon_them(
    signed: RunFolder, spoil: Any, fault: str
) -> None:
    spoil(records(signed)[0])
    assert any(fault in own for own in verify(signed).faults)
    for act in (lambda: give(signed, reason="Again."), lambda: write_report(signed.path)):
        with pytest.raises(RunError, match="put the records back from a copy"):
            act()


def test_no_file_is_called_changed_when_the_newest_record_is_lost(signed: RunFolder) -> None:
    records(signed)[-1].write_text("{}")
    found = verify(signed)
    assert (found.changed, found.new, found.unchanged) == ((), (), ())
    assert "no file was held against it" in found.faults[-1]
