"""The tables: what is in them, what they say is unknown, and nothing in them is markup."""

from pathlib import Path

import polars as pl
from tests.eval.studies import finished, tiny_study, tiny_trials, trial

from sma_eval.analysis import summarize
from sma_eval.records import TrialRecord
from sma_eval.report import arms_frame, markdown_table, text_table, trials_frame, write_parquet

STUDY = tiny_study()


def records() -> list[TrialRecord]:
    always, softmax, *others = tiny_trials()
    return [
        finished(always, 0.75),
        finished(softmax, 0.5, best_step=12),
        *(TrialRecord(trial=other) for other in others),
    ]


def test_the_text_table_shows_each_arm_and_explains_itself() -> None:
    table = text_table(summarize(records(), STUDY.objective), STUDY)
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["arm", "seeds", "accuracy", "difference"]
    assert lines[1].split() == [
        *("always", "1", "0.7500", "-", "0.500", "-", "50", "0.50", "12", "8", "1")
    ]
    assert lines[2].startswith("tempered_softmax @ 0.5")
    assert "-0.2500" in lines[2]
    assert "on split 'test'" in table
    assert "difference: to 'always'" in table
    assert "1 of 2 arms were best at the last step" in table


def test_a_study_that_has_just_begun_has_a_table() -> None:
    empty = [TrialRecord(trial=one) for one in tiny_trials()]
    table = text_table(summarize(empty, STUDY.objective), STUDY)
    assert table.splitlines()[1].split() == ["always", "0", *"-------", "-", "2"]
    assert "last step" not in table


def test_markdown_holds_what_text_holds_and_no_pipe_breaks_it() -> None:
    rows = summarize([finished(trial("a | b [red]x[/red]"))], STUDY.objective)
    table = markdown_table(rows, STUDY).splitlines()
    assert table[0].startswith("| arm | accuracy |")
    assert table[2].startswith("| a \\| b [red]x[/red] | 0.5000 |")
    assert text_table(rows, STUDY).splitlines()[1].startswith("a | b [red]x[/red]  ")
    cells = [line.replace("\\|", "").count("|") for line in table[:3]]
    assert len(set(cells)) == 1


def test_figures_on_validation_are_said_to_be_too_good() -> None:
    task = {"kind": "prepared", "dataset": "d", "head": "step_classification"}
    study = STUDY.model_validate({**STUDY.model_dump(), "task": task})
    assert "a little too good" in text_table(summarize(records(), study.objective), study)
    assert "a little too good" not in text_table(summarize(records(), STUDY.objective), STUDY)


def test_frames_go_through_parquet(tmp_path: Path) -> None:
    rows = summarize(records(), STUDY.objective)
    for frame in (arms_frame(rows), trials_frame(records(), STUDY)):
        write_parquet(frame, tmp_path / "frame.parquet")
        assert pl.read_parquet(tmp_path / "frame.parquet").equals(frame)
    trials = trials_frame(records(), STUDY)
    assert trials["status"].to_list() == ["finished", "finished", "pending", "pending"]
    assert trials["test_objective"].to_list() == [0.75, 0.5, None, None]
    assert trials["activation"].to_list()[0] == [[0.5]]
    arms = arms_frame(rows)
    assert arms["difference_mean"].to_list() == [None, -0.25]
    assert arms["objective_low"].to_list() == [None, None]


def test_latency_and_memory_of_streams_are_shown_where_they_were_measured() -> None:
    one = finished(trial("a"), latency_seconds=1.5e-4, state_bytes=2048)
    table = text_table(summarize([one], STUDY.objective), STUDY)
    assert table.splitlines()[0].split()[-5:] == ["us/step", "state", "steps", "best", "at"]
    assert table.splitlines()[1].split()[-4:] == ["150", "2,048", "12", "8"]
    assert "bytes of a stream" in table
    without = text_table(summarize([finished(trial("a"))], STUDY.objective), STUDY)
    assert "us/step" not in without
