"""Signing a run and verifying it: what is refused, what shows, and that each change is found."""

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.pilot.decision_cases import (
    NAME,
    REASON,
    flip,
    give,
    make_quick,
    records,
)
from typer.testing import CliRunner

from sma_pilot import cli, pilot
from sma_pilot.decision import signing
from sma_pilot.decision.record import Decision, is_against, load_decisions, write_decision
from sma_pilot.decision.signing import sign
from sma_pilot.decision.verification import Verification, verify
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.progress import no_progress
from sma_pilot.replay.card import fingerprint
from sma_pilot.report.markdown import decision_markdown
from sma_pilot.report.page import render, write_report
from sma_pilot.run_folder import RunFolder, write_json
from sma_pilot.store import store_uri

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


@pytest.mark.parametrize(
    ("kind", "decision", "override", "signed"),
    [
        ("go", "go", False, True),
        ("go", "no-go", False, False),
        ("go", "no-go", True, True),
        ("no-go", "go", False, False),
        ("no-go", "go", True, True),
        ("no-go", "no-go", False, True),
        ("inconclusive", "go", False, False),
        ("inconclusive", "go", True, True),
        ("inconclusive", "no-go", False, True),
    ],
)
def test_against_the_verdict_an_override_is_needed(
    runs: dict[str, RunFolder], kind: str, decision: str, override: bool, signed: bool
) -> None:
    run = runs[kind]
    if not signed:
        with pytest.raises(DecisionError, match=f"the verdict is {kind}.*--override"):
            give(run, decision, override=override)
        assert not run.decisions.exists()
        assert not run.report.exists()
        return
    made = give(run, decision, override=override)
    assert (made.verdict, made.override) == (kind, override)
    assert load_decisions(run) == (made,)


@pytest.mark.parametrize(("kind", "decision"), [("go", "go"), ("inconclusive", "no-go")])
def test_an_override_of_nothing_is_refused(
    runs: dict[str, RunFolder], kind: Any, decision: Any
) -> None:
    assert not is_against(decision, kind)
    with pytest.raises(DecisionError, match="does not go against the verdict"):
        give(runs[kind], decision, override=True)


@pytest.mark.parametrize(
    ("by", "reason", "message"),
    [
        ("", "why", "--by: is empty"),
        (" \n", "why", "--by: is empty"),
        ("Ada", "\t", "--reason: is empty"),
        ("Ada\x1b[2J", "why", "--by: holds characters that cannot be shown"),
        ("Ada\u202e", "why", "--by: holds characters that cannot be shown"),
        ("Ada", "\udcff", "--reason: holds characters that cannot be shown"),
    ],
)
def test_name_and_reason_are_words(run: RunFolder, by: str, reason: str, message: str) -> None:
    with pytest.raises(DecisionError, match=message):
        sign(run, "go", by, reason, override=False, on_progress=no_progress)
    assert not run.decisions.exists()


def change_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run.result.unlink(), "no result.json yet; run `sma-pilot judge`"),
        (
            lambda run: change_json(run.result, lambda own: own["kpis"][2].update(value=0.0)),
            r"not what the judge says of these measurements \(kpis\[2\].value\)",
        ),
        (
            lambda run: change_json(run.result, lambda own: own["reasons"][0].update(text="Fine")),
            r"\(reasons\[0\].text\); run `sma-pilot judge` again",
        ),
        (
            lambda run: change_json(run.result, lambda own: own["environment"].update(cpu="Best")),
            r"\(environment.cpu\)",
        ),
        (lambda run: flip(run.dataset / "train.safetensors", -1), "train.*sma-pilot prepare"),
        (
            lambda run: change_json(
                run.replay / "replay.json", lambda own: own.update(plan_digest="0")
            ),
            "replayed by another plan",
        ),
        (
            lambda run: change_json(
                run.replay / "replay.json", lambda own: own["dataset"].update(digest="0")
            ),
            "replayed on other data",
        ),
        (
            lambda run: change_json(
                run.replay / "replay.json", lambda own: own["models"].update(candidate="0")
            ),
            "not the model that was replayed",
        ),
        (lambda run: run.plan.unlink(), "not a run folder"),
    ],
)
def test_what_does_not_hang_together_is_not_signed(
    run: RunFolder, spoil: Any, message: str
) -> None:
    spoil(run)
    with pytest.raises(RunError, match=message):
        give(run)
    assert not run.decisions.exists()


def test_the_model_that_was_replayed_is_accepted(run: RunFolder) -> None:
    print_of_it = fingerprint(run.models / "candidate")
    card = run.replay / "replay.json"
    change_json(card, lambda own: own["models"].update(candidate=print_of_it))
    assert give(run).number == 1


def test_figures_that_another_processor_rounds_otherwise_are_the_same(run: RunFolder) -> None:
    def nudge(result: dict[str, Any]) -> None:
        result["kpis"][2]["value"] *= 1 + 1e-9

    change_json(run.result, nudge)
    give(run)
    assert verify(run).is_intact


def test_going_the_way_again_leaves_a_signed_run_intact(run: RunFolder) -> None:
    pilot.judge(run.load_plan(), run)
    give(run)
    pilot.judge(run.load_plan(), run)
    pilot.report(run)
    assert verify(run).is_intact


def test_signing_the_same_again_adds_nothing(run: RunFolder) -> None:
    first = give(run)
    run.report.write_text("lost")
    assert give(run) == first
    assert verify(run).is_intact
    with pytest.raises(RunError, match="somebody else signed meanwhile"):
        write_decision(run, first.model_copy(update={"by": "Somebody else"}))
    other = give(run, reason="Another reason.")
    assert (other.number, other.previous) == (2, first.sha256)
    assert len(records(run)) == 2


def test_a_decision_on_another_result_is_a_new_one(run: RunFolder) -> None:
    give(run)
    run.result.write_text(json.dumps(json.loads(run.result.read_text())))
    assert verify(run).changed == ("result.json",)
    page = write_report(run.path).read_text()
    assert "Another result was signed: this one came later." in page
    assert give(run).number == 2
    assert verify(run).is_intact
    assert "came later" not in run.report.read_text()


def test_a_page_of_another_version_is_signed_anew(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(run)
    monkeypatch.setattr(signing, "render", lambda *given: render(*given) + "<!-- 2 -->")
    assert give(run).number == 2
    assert verify(run).is_intact


class Text(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_name_and_reason_are_text_on_the_page(run: RunFolder) -> None:
    give(run)
    page = Text(run.report.read_text())
    assert page.text.count(NAME) == page.text.count(REASON) == 2, "on top, and under Decision"
    assert not page.tags & {"script", "img"}
    assert "Signed: ✓ Go" in page.text


def test_an_override_shows_for_ever(runs: dict[str, RunFolder]) -> None:
    run = runs["no-go"]
    give(run, "go", "We need it.", override=True)
    page = run.report.read_text()
    assert '<p class="signed against"><strong>Signed: ✓ Go</strong>' in page
    assert "Against the verdict, which was No-go." in page
    assert '<div class="status fail">against the verdict</div>' in page
    give(run, "no-go", "We do not.")
    page = write_report(run.path).read_text()
    assert '<p class="signed"><strong>Signed: ✕ No-go</strong>' in page
    assert page.count('<div class="status fail">against the verdict</div>') == 1
    assert page.index("We do not.") < page.index("We need it."), "the newest first"


def test_an_unsigned_page_has_room_for_a_signature(run: RunFolder) -> None:
    page = write_report(run.path).read_text()
    assert "<span>Signature</span>" in page
    assert "Signed:" not in page
    give(run)
    assert "<span>Signature</span>" not in run.report.read_text()


def decisions(count: int, **changes: Any) -> list[Decision]:
    given = {
        "time": datetime(2026, 3, 1, 8, 30, tzinfo=UTC),
        "by": NAME,
        "decision": "go",
        "reason": "*" * 900,
        "verdict": "no-go",
        "override": True,
        "plan_digest": "",
        "files": {},
        "previous": None,
    }
    return [Decision(number=i + 1, **given | changes) for i in range(count)]


def test_the_note_of_many_decisions_fits_and_shows_the_newest() -> None:
    note = decision_markdown(decisions(40), unchanged=True, length=3000)
    assert len(note) < 3100
    assert note.startswith("**⚠ Signed: go, AGAINST the verdict no-go** by Ada &#60;script&#62;")
    assert re.search(r"Before: 3\d more, on the report\.$", note)
    assert "<" not in note
    changed = decision_markdown(decisions(1), unchanged=False, length=10)
    assert changed.startswith("**⚠ The run was changed after it was signed.** **⚠ Signed: go")
    assert decision_markdown([], unchanged=True, length=10) == ""


def test_sign_and_verify_as_typed(
    run: RunFolder, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = []
    monkeypatch.setattr(pilot, "track", lambda run, store: stores.append(store) or "0123")
    path = str(run.path)
    assert typed("verify", path)[0] == 2
    words = ("sign", path, "--by", "Ada Berg", "--reason", "As judged.", "--decision")
    code, out, err = typed(*words, "no-go")
    assert (code, out) == (2, "")
    assert "error: --decision no-go: the verdict is go" in err
    assert typed(*words, "perhaps")[0] == 2
    code, out, err = typed(*words, "go")
    (record,) = records(run)
    sha256 = hashlib.sha256(record.read_bytes()).hexdigest()
    assert (code, out.splitlines()[:2]) == (0, ["signed   go by Ada Berg", f"record   {record}"])
    assert f"sma-pilot verify {path} --record {sha256}" in err
    assert stores == [store_uri(run.path.parent / "mlflow.db")], "beside the run folder"
    code, out, _ = typed(*words, "go", "--json")
    document = json.loads(out)
    assert (document["sha256"], document["number"], document["mlflow_run"]) == (sha256, 1, "0123")

    code, out, _ = typed("verify", path, "--record", sha256)
    assert (code, "Nothing was changed" in out) == (0, True)
    code, out, err = typed("verify", path, "--record", "what?")
    assert (code, out, "--record: need the SHA-256" in err) == (2, "", True)
    flip(run.plan, 40)
    code, out, _ = typed("verify", path, "--json")
    document = json.loads(out)
    assert (code, document["intact"], document["changed"]) == (1, False, ["plan.json"])
    assert document["decisions"][0]["by"] == "Ada Berg"


@pytest.mark.parametrize("missing", ["--by", "--reason", "--decision"])
def test_a_signature_without_a_part_is_refused(run: RunFolder, missing: str) -> None:
    words = {"--by": "Ada", "--reason": "As judged.", "--decision": "go"}
    del words[missing]
    given = [word for pair in words.items() for word in pair]
    result = CliRunner().invoke(cli.app, ["sign", str(run.path), *given])
    assert (result.exit_code, missing in result.stderr) == (2, True)
    assert not run.decisions.exists()


def test_verify_of_what_is_no_run_is_bad_input(tmp_path: Path, typed: Any) -> None:
    code, _, err = typed("verify", str(tmp_path))
    assert (code, "not a run folder" in err) == (2, True)
