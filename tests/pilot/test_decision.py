"""Signing a run: what is refused, what shows for ever, and the two commands as typed."""

import hashlib
import json
import re
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
from sma_pilot.decision.verification import verify
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.progress import no_progress
from sma_pilot.replay.card import fingerprint
from sma_pilot.report.markdown import decision_markdown
from sma_pilot.report.page import render, write_report
from sma_pilot.run_folder import RunFolder, write_json
from sma_pilot.store import store_uri


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


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
