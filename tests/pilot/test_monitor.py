"""After a go: which rows make a look, what it recommends, and that looks stay what they were."""

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.pilot.decision_cases import flip, give
from tests.pilot.monitor_cases import (
    JUDGED_UNTIL,
    MINUTE,
    START,
    monitor_plan,
    plant,
    signed_run,
    take,
)
from tests.pilot.replay_cases import quiet
from tests.pilot.stage_cases import BORDERS, go_on, script, staged_plan, staged_run

from sma_pilot import pilot, tracking
from sma_pilot.decision import signing
from sma_pilot.errors import LogError, RunError
from sma_pilot.monitor import course
from sma_pilot.monitor.basis import Basis
from sma_pilot.monitor.look import read_looks
from sma_pilot.monitor.standing import standing_of
from sma_pilot.plan import MonitorPlan
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.windows import stage_edges

DAY = 1440
LONG = 1500
"""Minutes with stretches of time enough for a bound."""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A signed pilot; nobody writes to it."""
    return signed_run(tmp_path_factory.mktemp("signed"), monitor_plan())


@pytest.fixture
def run(signed: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(signed.path, tmp_path / "runs" / signed.path.name)))


@pytest.fixture
def look(run: RunFolder) -> Any:
    """Give frames to the monitor as one log."""
    return functools.partial(take, run)


@pytest.fixture(scope="module")
def looked(signed: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same with two looks."""
    folder = tmp_path_factory.mktemp("looked") / signed.path.name
    run = RunFolder(Path(shutil.copytree(signed.path, folder)))
    for part in range(2):
        take(run, plant(JUDGED_UNTIL + 100 * part, 100))
    return run


@pytest.mark.parametrize(
    ("shift", "advice", "alarms"),
    [
        ({}, "keep", set()),
        ({"y": 1.2}, "re-pilot", {"drift/index"}),
        (
            {"z": 8.0},
            "fall back",
            {
                "drift/index",
                "routing/activation_rate",
                "routing/collapsed_share",
                "routing/collapsed_submodules",
            },
        ),
    ],
)
def test_a_log_and_what_it_recommends(
    look: Any, run: RunFolder, shift: Any, advice: str, alarms: set[str]
) -> None:
    found = look(plant(JUDGED_UNTIL, LONG, **shift))
    (taken,) = found.taken
    assert found.standing.recommendation == taken.recommendation == advice
    assert {own.name for own in taken.findings if own.status == "alarm"} == alarms
    assert (taken.rows, taken.entities, taken.labelled_rows) == (2 * LONG, 2, 2 * LONG)
    assert pilot.verify(run, None, quiet).is_intact  # a look is no part of what was signed


def test_a_candidate_that_misses_events_falls_back_whatever_the_incumbent_does(look: Any) -> None:
    (taken,) = look(plant(JUDGED_UNTIL, LONG, y=8.0)).taken
    loss = taken.findings[0]
    assert (loss.name, loss.status, loss.advice) == (
        "quality/loss_event_recall",
        "alarm",
        "fall back",
    )
    assert (loss.value, loss.at_verdict, loss.limit) == (1.0, 0.0, 0.2)
    assert loss.low is not None
    assert loss.low > 0.2
    assert "The incumbent is 0.000 worse than at the verdict." in taken.findings[1].text


def test_rows_without_a_score_fall_back(look: Any) -> None:
    (taken,) = look(plant(JUDGED_UNTIL, 700, labelled=False, y=-8.0)).taken
    unscored = next(own for own in taken.findings if own.name == "safety/unscored_share")
    assert (unscored.status, unscored.advice) == ("alarm", "fall back")


def test_labels_that_come_later_have_the_look_taken_anew(look: Any, run: RunFolder) -> None:
    bare = plant(JUDGED_UNTIL, LONG, labelled=False)
    first = look(bare)
    assert first.notes == ("no file has the label column 'fault': nothing is labelled yet",)
    assert first.taken[0].findings[0].text == "Event recall: not measured: no labels yet."
    again = look(bare)
    assert again.taken == ()
    assert "look 1 saw them, and nothing has changed" in again.notes[-1]
    # A column that is there and empty says no more than one that is not.
    assert look(bare.with_columns(fault=pl.lit(None, pl.Int64))).taken == ()

    (labelled,) = look(plant(JUDGED_UNTIL, LONG)).taken
    assert (labelled.number, labelled.replaces) == (2, 1)
    assert labelled.findings[0].status == "ok"
    chain = read_looks(run)
    assert not chain.faults
    assert [own.number for own in chain.standing] == [2]
    # Labels that are taken away again do not undo it.
    undone = look(bare)
    assert undone.taken == ()
    assert "was taken on them with more labels" in undone.notes[-1]


def test_a_growing_log_gives_a_look_at_what_it_gained(look: Any) -> None:
    earlier = plant(0, JUDGED_UNTIL)
    weeks = [plant(JUDGED_UNTIL + DAY * i, DAY, labelled=i != 0) for i in range(3)]
    first = look(earlier, weeks[0])
    assert first.notes[0].startswith(f"{2 * JUDGED_UNTIL:,} rows are left out: they are not later")
    second = look(earlier, weeks[0], weeks[1])
    (own,) = second.taken
    assert own.since_ns == first.taken[0].until_ns == START + MINUTE * (JUDGED_UNTIL + DAY - 1) + 1
    assert own.rows == 2 * DAY
    # Labels of the first day come with the third: that one is looked at anew, this one for the
    # first time.
    labelled = plant(JUDGED_UNTIL, DAY)
    third = look(earlier, labelled, weeks[1], weeks[2])
    assert [(one.number, one.replaces) for one in third.taken] == [(3, 1), (4, None)]
    assert [one.number for one in third.chain.standing] == [3, 2, 4]


def test_quality_is_that_of_the_newest_look_that_has_labels(look: Any) -> None:
    bad = look(plant(JUDGED_UNTIL, LONG, y=8.0)).taken[0]
    fine = look(plant(JUDGED_UNTIL + LONG, LONG, labelled=False)).taken[0]
    now = standing_of([bad, fine])
    assert now.recommendation == "fall back"
    by_name = {own.name: number for number, own in now.findings}
    assert by_name["quality/loss_event_recall"] == bad.number
    assert by_name["drift/index"] == fine.number  # the drift of the one before has passed


def test_rows_of_a_look_that_are_not_all_there_change_nothing(look: Any) -> None:
    look(plant(JUDGED_UNTIL, 300, labelled=False))
    part = look(plant(JUDGED_UNTIL, 300, machines=("mill",)))
    assert part.taken == ()
    assert "300 rows are left out: they lie within look 1" in part.notes[-1]


def test_one_row_is_a_look_that_knows_how_little_it_knows(look: Any) -> None:
    found = look(plant(JUDGED_UNTIL, 1, machines=("mill",), y=50.0))
    (taken,) = found.taken
    assert taken.rows == 1
    assert found.standing.recommendation == "keep"
    assert {own.status for own in taken.findings} <= {"ok", "open", "not_measured"}
    drift = next(own for own in look(plant(JUDGED_UNTIL + 1, 20, y=8.0)).taken[0].findings[4:])
    assert drift.status == "open"
    assert drift.text.endswith("; 40 rows raise no alarm, 1,000 are needed.")


def test_a_machine_that_nobody_knew_and_values_that_are_none(look: Any) -> None:
    frame = plant(JUDGED_UNTIL, 300, machines=("mill", "new & <b>shiny</b>\nsaw"))
    holes = frame.with_columns(x=pl.when(pl.col("t") % (7 * MINUTE) > 0).then("x"))
    holes = holes.with_columns(y=pl.lit(float("nan")), extra=pl.lit("what is that?"))
    found = look(holes)
    (taken,) = found.taken
    assert taken.unknown_entities == ("new & <b>shiny</b>\nsaw",)
    assert "the pilot never saw" in found.notes[0]


def test_channels_are_those_of_the_pilot_whatever_their_order(look: Any, run: RunFolder) -> None:
    frame = plant(JUDGED_UNTIL, 300)
    (taken,) = look(frame.select("fault", "z", "machine", "x", "t", "y")).taken
    shutil.rmtree(run.monitor)
    (other,) = look(frame).taken
    assert taken.inputs_sha256 == other.inputs_sha256
    assert taken.kpis == other.kpis


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (plant(JUDGED_UNTIL - 10, 10), "were judged before the go"),
        (plant(JUDGED_UNTIL, 10).drop("y"), "no column matches column 'y'"),
        (plant(JUDGED_UNTIL, 10).drop("machine"), "no column 'machine'"),
        (plant(JUDGED_UNTIL, 10).clear(), "no row with a time and an entity"),
        (plant(JUDGED_UNTIL, 10).with_columns(fault=pl.lit("perhaps")), "is no label"),
        (plant(JUDGED_UNTIL, 10).with_columns(y=pl.lit("loud")), "'loud'"),
    ],
)
def test_a_log_that_does_not_do_is_refused_and_leaves_nothing(
    look: Any, run: RunFolder, frame: pl.DataFrame, words: str
) -> None:
    with pytest.raises(LogError, match=words):
        look(frame)
    assert not list(run.monitor.glob("*")) or not run.monitor.is_dir()


def test_a_look_that_is_stopped_never_was(
    look: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = plant(JUDGED_UNTIL, 300)

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(course, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            look(frame)
    assert not list(run.monitor.glob("*"))
    # What a kill -9 leaves is hidden, and goes with the next look.
    (left := run.monitor / ".look.staging-999999999-x").mkdir()
    assert look(frame).taken[0].number == 1
    assert not left.exists()
    assert [path.name[:9] for path in run.monitor.iterdir()] == ["look-0001"]


def test_only_a_signed_go_is_watched(look: Any, run: RunFolder) -> None:
    frame = plant(JUDGED_UNTIL, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing, "draw", lambda evidence: {})
        pilot.sign(run, "no-go", "Ada", "Stop.", override=True, on_progress=quiet)
    with pytest.raises(RunError, match="Ada signed no-go"):
        look(frame)
    shutil.rmtree(run.decisions)
    with pytest.raises(RunError, match="nobody has signed this pilot"):
        look(frame)


def test_a_run_that_was_changed_is_no_measure(look: Any, run: RunFolder) -> None:
    flip(run.models / "candidate" / "fake.json", 1)
    with pytest.raises(RunError, match="changed since it was signed"):
        look(plant(JUDGED_UNTIL, 300))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda first, second: flip(first / "look.json", 60), "look-0001"),
        (lambda first, second: flip(next(second.glob("scores/*")), 60), "changed"),
        (lambda first, second: shutil.rmtree(first), "look 1 is missing"),
        (lambda first, second: (second / "note.txt").write_text("x"), "note.txt: new"),
        (lambda first, second: next(second.glob("scores/*")).unlink(), "missing"),
        (lambda first, second: (first.parent / "note.txt").write_text("x"), "not a look"),
        (lambda first, second: first.rename(first.parent / f"look-0003{first.name[9:]}"), "look 1"),
    ],
)
def test_a_look_that_was_changed_shows(
    looked: RunFolder, tmp_path: Path, spoil: Any, words: str
) -> None:
    run = RunFolder(Path(shutil.copytree(looked.path, tmp_path / looked.path.name)))
    found = pilot.verify(run, None, quiet)
    assert found.is_intact
    assert (found.looks, found.look_faults) == (2, ())
    assert "2 of the monitor, as they were taken" in found.to_text()
    spoil(*sorted(run.monitor.glob("look-*")))
    found = pilot.verify(run, None, quiet)
    assert found.is_intact  # what was signed is
    assert words in " ".join(found.look_faults)
    assert "The looks of the monitor are NOT those that were taken." in found.to_text()
    with pytest.raises(RunError, match="put the looks back"):
        take(run, plant(JUDGED_UNTIL + 200, 100))


def test_a_look_that_was_written_anew_is_not_the_one_that_the_next_follows(
    looked: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(looked.path, tmp_path / looked.path.name)))
    first = read_looks(run).looks[0]
    forged = first.model_copy(update={"summary": "All is well."})
    folder = run.monitor / first.folder_name
    (folder / "look.json").write_bytes(forged.content)
    folder.rename(run.monitor / forged.folder_name)
    (fault,) = read_looks(run).faults
    assert fault.startswith("monitor/look-0002-")
    assert fault.endswith("does not follow the look before it")


def test_looks_follow_each_other_by_number_and_not_by_name(look: Any, run: RunFolder) -> None:
    look(plant(JUDGED_UNTIL, 300))
    first = read_looks(run).looks[0]
    shutil.rmtree(run.monitor / first.folder_name)
    before = first.model_copy(update={"number": 9999, "files": {}})
    after = before.model_copy(update={"number": 10_000, "previous": before.sha256})
    for own in (before, after):
        (run.monitor / own.folder_name).mkdir()
        (run.monitor / own.folder_name / "look.json").write_bytes(own.content)
    chain = read_looks(run)
    assert [own.number for own in chain.looks] == [9999, 10_000]
    assert [fault.partition(": ")[2] for fault in chain.faults] == ["look 1 is missing"]


def test_latency_is_measured_where_the_plan_asks(tmp_path: Path) -> None:
    plan = monitor_plan(monitor={"latency_events": 150})
    (taken,) = take(signed_run(tmp_path, plan), plant(JUDGED_UNTIL, 300)).taken
    latency = taken.findings[-1]
    assert (latency.name, latency.status, latency.value) == ("latency/ratio_p95", "ok", 1.0)


def test_a_pilot_in_stages_is_watched_from_its_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = staged_plan({"kind": "offline", "until": 0.8}, {"kind": "full"})
    run = staged_run(tmp_path, plan)
    script(monkeypatch, {})
    go_on(run)
    with pytest.raises(RunError, match=r"nobody has signed stage full .* --stage full"):
        Basis.read(run, quiet)
    signed = give(run.at("full"))
    basis = Basis.read(run, quiet)
    assert basis.decision == signed
    assert (basis.plan.stages[0].name, basis.plan.quality.alpha) == ("full", 0.05)
    # The last stage judges from four fifths of the log on, 450 minutes long.
    since = stage_edges(plan, basis.dataset.card.provenance["borders_ns"])[1]
    assert basis.judged.since_ns >= since
    assert basis.judged.until_ns == BORDERS[-1] - MINUTE + 1


def test_recording_a_pilot_records_its_looks(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Path] = []
    monkeypatch.setattr(tracking, "track", lambda path, store, stage: "id")
    monkeypatch.setattr(tracking, "track_looks", lambda path, store: told.append(path))
    assert pilot.track(run, "store") == "id"
    assert told == []
    run.monitor.mkdir()
    pilot.track(run, "store")
    assert told == [run.path]


def test_a_plan_without_the_table_keeps_its_digest() -> None:
    plan = monitor_plan()
    document = plan.model_dump(mode="json")
    assert document.pop("monitor") is None
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()
    assert monitor_plan(monitor={}).digest != plan.digest
    assert MonitorPlan() == monitor_plan(monitor={}).monitor
