"""The page of a study: what is on it, that it stands alone, and that nothing in it is markup."""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from tests.eval.studies import finished, tiny_study, tiny_trials

from sma_eval.experiment import REPORT_FILES, Outcome, write_report
from sma_eval.folder import StudyFolder, claimed
from sma_eval.naming import short_names, with_short_names
from sma_eval.records import TrialRecord
from sma_eval.report.page import render
from sma_eval.report.plots import arms_plot
from sma_eval.study import Objective, Study

POOLS = (
    'pool = [[{ kind = "gated_attention", window = 8 }], '
    '[{ kind = "gated_attention", window = 4 }, { kind = "swiglu" }]]'
)
ACCURACY = Objective(metric="accuracy", mode="max")
PICTURE = re.compile(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)">')


def records() -> list[TrialRecord]:
    """Two policies, two pools, two seeds, with costs; the learned policy is worse and cheaper."""
    return [
        finished(
            one,
            0.9 - 0.3 * (one.policy != "always") + 0.01 * one.seed,
            flops_per_step=100.0 - 50.0 * (one.policy != "always"),
            latency_seconds=1e-4,
            state_bytes=2048,
        )
        for one in tiny_trials(pool=POOLS)
    ]


def page(trials: Sequence[TrialRecord], *, active: bool = False, **changes: object) -> str:
    study = tiny_study(pool=POOLS)
    study = Study.model_validate({**study.model_dump(), **changes})
    return render(study, trials, dataset_digest="abc", active=active)


def well_formed(content: str) -> str:
    """Return the name of the outermost element of a picture."""
    return ElementTree.fromstring(base64.b64decode(content)).tag  # noqa: S314 - no other's data


@pytest.fixture(scope="module")
def whole() -> str:
    """The page of a study that has ended; plots take most of a second to draw."""
    return page(records())


def test_the_page_shows_conclusion_table_plots_and_provenance(whole: str) -> None:
    for text in (
        "<strong>Chance alone:</strong>",
        "<strong>Policies, against always:</strong> worse: tempered_softmax @ 0.5",
        ">accuracy</th>",
        "8 trials: 8 finished",
        "Policy and pool together",
        tiny_study(pool=POOLS).digest,
        "<dd><code>abc</code></dd>",
    ):
        assert text in whole
    figures = re.findall(r'<figure id="([a-z]+)">', whole)
    assert figures == ["arms", "effects", "interaction", "rates", "fronts"]
    assert "running" not in whole
    assert "stopped" not in whole


def test_the_page_stands_alone_and_each_plot_is_a_picture_with_words(whole: str) -> None:
    pictures = PICTURE.findall(whole)
    assert len(pictures) == whole.count("<img") == 5
    for content, words in pictures:
        assert words
        assert well_formed(content).endswith("svg")
    without = PICTURE.sub("", whole)
    assert not re.search(r"(src|href)=|url\(|@import|<script", without)
    assert "default-src 'none'" in whole


def test_the_same_trials_make_the_same_bytes() -> None:
    one, other = (arms_plot(records(), ACCURACY) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.source == other.source


def test_whatever_a_study_says_is_text() -> None:
    bad = "</style><script>alert(1)</script><img src=x>"
    failed = [
        TrialRecord(trial=one, status="failed", reason=bad) for one in tiny_trials(pool=POOLS)
    ]
    html = page(failed, description=bad)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") == 1 + len(failed)


def test_a_label_written_into_the_folder_by_hand_is_text_in_a_plot_too() -> None:
    bad = "\x07$x^2$ </style><script>alert(1)</script><img src=x>"
    one, *others = records()
    trial = dataclasses.replace(one.trial, arm=bad, pool=bad, policy=bad)
    html = page([dataclasses.replace(one, trial=trial), *others])
    assert "<script" not in html
    for content, _ in PICTURE.findall(html):
        assert b"<script" not in base64.b64decode(content)
        assert well_formed(content).endswith("svg")


def test_a_study_that_runs_or_stopped_says_so_and_one_that_begins_has_no_plots() -> None:
    waiting = [TrialRecord(trial=one) for one in tiny_trials(pool=POOLS)]
    begun = page(waiting, active=True)
    assert "still running" in begun
    assert "8 trials: 8 pending" in begun
    assert "nothing to conclude" in begun
    assert "<img" not in begun
    assert "has stopped before its end" in page(waiting)


def test_names_say_what_tells_one_from_another() -> None:
    trials = tiny_trials(pool=POOLS)
    named, labels = with_short_names([TrialRecord(trial=one) for one in trials])
    assert [record.trial.arm for record in named[:4]] == [
        "always | gated_attention(window=8)",
        "always | gated_attention(window=4) + swiglu",
        "tempered_softmax @ 0.5 | gated_attention(window=8)",
        "tempered_softmax @ 0.5 | gated_attention(window=4) + swiglu",
    ]
    assert labels == {}  # the study's own labels say no more
    (one,), whole = with_short_names([TrialRecord(trial=tiny_trials()[0])])
    assert one.trial.pool == "gated_attention"
    label = "gated_attention(query_width=4, value_width=8, window=8)"
    assert whole == {"gated_attention": label}


def test_names_that_would_be_the_same_stay_whole() -> None:
    same = {"kind": "gated_attention", "window": 8}
    assert short_names({"a": [same], "b": [same]}) == {"a": "a", "b": "b"}
    nested = {"kind": "gumbel", "temperature": {"start": 1.0, "end": 0.5}}
    other = {"kind": "gumbel", "temperature": {"start": 2.0, "end": 0.5}}
    assert short_names({"a": [nested], "b": [other]}) == {
        "a": "gumbel(temperature.start=1.0)",
        "b": "gumbel(temperature.start=2.0)",
    }


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study folder of which nothing has finished."""
    path = tmp_path / "study"
    path.mkdir()
    trials = tiny_trials(pool=POOLS)
    return StudyFolder.create(path, tiny_study(pool=POOLS), trials, path / "datasets" / "d", "abc")


def test_the_page_and_its_frames_lie_side_by_side(folder: StudyFolder, tmp_path: Path) -> None:
    for record in records():
        folder.write_record(record)
    written = write_report(Outcome.read(folder.path), tmp_path / "there" / "report")
    assert written == tmp_path / "there" / "report" / "report.html"
    assert {entry.name for entry in written.parent.iterdir()} == set(REPORT_FILES)
    frame = pl.read_parquet(written.parent / "effects.parquet")
    assert frame.group_by("family").len().sort("family").rows() == [
        *(("interaction", 1), ("policy", 1), ("pool", 1), ("rival", 3))
    ]
    assert frame.filter(pl.col("family") == "policy")["difference_mean"][0] == pytest.approx(-0.3)
    rates = pl.read_parquet(written.parent / "rates.parquet")
    assert rates["target"].to_list() == [0.5, 0.5]
    fronts = pl.read_parquet(written.parent / "fronts.parquet")
    assert set(fronts["cost"]) == {"flops_per_step", "latency_seconds", "state_bytes", "all"}
    assert fronts.filter(pl.col("cost") == "flops_per_step")["value"].is_sorted()


def test_a_driver_at_work_shows_on_the_page(folder: StudyFolder) -> None:
    with claimed(folder.path):
        text = write_report(Outcome.read(folder.path)).read_text(encoding="utf-8")
        assert "still running" in text
    assert "has stopped" in write_report(Outcome.read(folder.path)).read_text(encoding="utf-8")


def test_a_full_disk_leaves_the_page_that_was_there(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_report(Outcome.read(folder.path)).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(Outcome.read(folder.path))
    assert (folder.path / "report.html").read_bytes() == before
    assert {entry.name for entry in folder.path.iterdir()} == {
        *REPORT_FILES,
        "study.json",
        "trials",
    }
