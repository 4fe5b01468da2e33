"""Progress goes to stderr, in lines where no one watches."""

from sma_pilot.progress import LiveProgress, PlainProgress, make_progress


def test_plain_progress_is_a_line_at_start_and_end_of_a_stage(capsys) -> None:
    progress = PlainProgress(every=1e9)
    for done in (0, 1, 2, 3):
        progress("fit", done, 3)
    progress("judge", 0, None)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["fit: 0 of 3", "fit: 3 of 3", "judge: 0"]


def test_plain_progress_speaks_up_when_a_stage_lasts(capsys) -> None:
    progress = PlainProgress(every=0.0)
    progress("fit", 1, 1000)
    progress("fit", 2, 1000)
    assert capsys.readouterr().err.splitlines() == ["fit: 1 of 1,000", "fit: 2 of 1,000"]


def test_live_progress_takes_names_from_a_log_as_they_are(capsys) -> None:
    progress = LiveProgress()
    progress("read [red]evil[/red]", 1, 2)
    progress.close()
    assert "[red]evil[/red]" in capsys.readouterr().err


def test_pipes_get_lines() -> None:
    assert isinstance(make_progress(), PlainProgress)
