"""Raw logs to the prepared data set: what it holds, and that nothing flows back in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.pilot.log_cases import (
    MINUTE,
    PLANT,
    START,
    make_plan,
    plant,
    same_split,
    split_arrays,
    write,
)

from sma_core import PreparedDataset
from sma_pilot.errors import LogError, RunError
from sma_pilot.logs.slices import SLICES
from sma_pilot.logs.vocabulary import MAX_VOCABULARY
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import Plan


def _prepare(folder: Path, log: pl.DataFrame, name: str = "out", **changes: Any) -> PreparedDataset:
    log.write_parquet(folder / "a.parquet")
    return prepare(make_plan("a.parquet", **PLANT | changes), folder, folder / name)


def test_rows_arrive_in_order_and_cut_into_sequences(tmp_path: Path) -> None:
    log = plant()
    dataset = _prepare(tmp_path, log)
    first, last = log["t"].min(), log["t"].max()
    assert isinstance(first, int)
    assert isinstance(last, int)
    borders = [first, *(first + round(s * (last - first)) for s in (0.6, 0.8)), last + 1]
    assert dataset.card.provenance["borders_ns"] == borders
    for number, name in enumerate(SLICES):
        arrays = split_arrays(dataset, name)
        rows = log.filter(pl.col("t").is_between(borders[number], borders[number + 1], "left"))
        rows = rows.sort("machine", "t")
        assert arrays["time"].tolist() == rows["t"].to_list()
        assert arrays["label"].tolist() == rows["fault"].to_list()
        words = [dataset.card.categorical[0].vocabulary[i] for i in arrays["categorical"][:, 0]]
        assert words == rows["mode"].to_list()
        gap = pl.col("t").diff().over("machine") > 10 * MINUTE
        starts = rows.select(
            (gap | ~pl.col("machine").eq(pl.col("machine").shift())).fill_null(True)
        )
        assert arrays["offsets"][:-1].tolist() == np.flatnonzero(starts.to_series()).tolist()
        names = [dataset.card.entities[i] for i in arrays["entity"]]
        assert names == rows["machine"].gather(arrays["offsets"][:-1]).to_list()


def test_borders_as_timestamps_leave_out_what_comes_after(tmp_path: Path) -> None:
    slices = {
        "validation_from": "2024-01-01T05:00:00Z",
        "judged_from": "2024-01-01T08:00:00+01:00",
        "judged_until": "2024-01-01T09:00:00Z",
    }
    log = plant(machines=1)
    dataset = _prepare(tmp_path, log, slices=slices)
    hours = [int(h * 60 * MINUTE) + START for h in (0, 5, 7, 9)]
    for name, low, high in zip(SLICES, hours, hours[1:], strict=False):
        times = log.filter(pl.col("t").is_between(low, high, "left"))["t"]
        assert split_arrays(dataset, name)["time"].tolist() == times.to_list()
    after = log.filter(pl.col("t") >= hours[3]).height
    assert dataset.card.provenance["rows_after_judged_until"] == after


def test_counts_in_provenance(tmp_path: Path) -> None:
    log = plant()
    doubled = pl.concat([log, log.head(7)])
    dataset = _prepare(tmp_path, doubled)
    told = dataset.card.provenance
    assert told["rows_read"] == len(doubled)
    assert told["duplicates_dropped"] == 7
    assert told["rows_out_of_order"] == 7
    assert told["gaps"] == 3
    assert sum(told["slices"][name]["rows"] for name in SLICES) == len(log)
    assert sum(told["slices"][name]["event_rows"] for name in SLICES) == log["fault"].sum()
    assert told["labels"] == {"codes": {"0": 0, "1": 1}, "missing": -1}
    assert [file["file"] for file in told["files"]] == ["a.parquet"]


@pytest.mark.parametrize("partition_bytes", [1, 40_000])
def test_small_partitions_give_the_same_data_set(tmp_path: Path, partition_bytes: int) -> None:
    plant(rows=2500).sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "a.parquet")
    plan = make_plan("a.parquet", **PLANT, horizon="20m")
    whole = prepare(plan, tmp_path, tmp_path / "whole")
    cut = prepare(plan, tmp_path, tmp_path / "cut", partition_bytes=partition_bytes)
    for name in SLICES:
        a, b = split_arrays(whole, name), split_arrays(cut, name)
        # Sums of pieces may differ in their last bits, and nothing else may.
        np.testing.assert_allclose(a.pop("numeric"), b.pop("numeric"), rtol=1e-6, atol=1e-6)
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_the_form_of_the_files_does_not_matter(tmp_path: Path) -> None:
    log = plant()
    folders = []
    for ending in ("csv", "ndjson", "parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        for part in range(3):
            rows = log[part::3]
            getattr(rows, {"parquet": "write_parquet"}.get(ending, f"write_{ending}"))(
                folder / f"{part}.{ending}"
            )
        plan = make_plan(f"*.{ending}", **PLANT)
        folders.append(prepare(plan, folder, folder / "out"))
    for name in SLICES:
        assert same_split(folders[0], folders[1], name)
        assert same_split(folders[0], folders[2], name)


def _train_part(dataset: PreparedDataset) -> tuple[Any, ...]:
    scaling = dataset.card.provenance["scaling"]
    return scaling, dataset.card.categorical, dataset.card.numeric


@pytest.mark.parametrize("scaling", ["per_entity", "global"])
@pytest.mark.parametrize("horizon", [None, "30m"])
def test_time_flows_forward(tmp_path: Path, scaling: str, horizon: str | None) -> None:
    log = plant()
    now = _prepare(tmp_path, log, "now", scaling=scaling, horizon=horizon)
    borders = now.card.provenance["borders_ns"]
    span = pl.col("t").is_between(log["t"].min(), log["t"].max(), "none")  # the span stays
    for number, kept in ((2, SLICES[:2]), (1, SLICES[:1])):
        later = span & (pl.col("t") >= borders[number])

        def change(column: str, value: pl.Expr, later: pl.Expr = later) -> pl.Expr:
            return pl.when(later).then(value).otherwise(pl.col(column)).alias(column)

        changed = log.with_columns(
            change("x", -50 * pl.col("y")),
            change("y", pl.lit(1e30)),
            change("mode", pl.lit("never seen")),
            change("fault", (1 - pl.col("fault")).cast(pl.Int32)),
        ).filter(~later | (pl.col("t") // MINUTE % 5 != 0))
        other = _prepare(tmp_path, changed, f"changed{number}", scaling=scaling, horizon=horizon)
        for name in SLICES:
            assert same_split(now, other, name) == (name in kept)
        assert _train_part(now) == _train_part(other)


def test_training_itself_does_reach_scales_and_vocabularies(tmp_path: Path) -> None:
    log = plant()
    early = pl.col("t") < START + 50 * MINUTE
    changed = log.with_columns(
        pl.when(early).then(99.0).otherwise("x").alias("x"),
        pl.when(early).then(pl.lit("new")).otherwise("mode").alias("mode"),
    )
    one, other = _prepare(tmp_path, log, "one"), _prepare(tmp_path, changed, "other")
    assert all(a != b for a, b in zip(_train_part(one), _train_part(other), strict=True))


def test_words_unseen_in_training_are_unknown(tmp_path: Path) -> None:
    log = plant(machines=1).with_columns(
        pl.when(pl.col("t") > START + 500 * MINUTE)
        .then(pl.lit("late"))
        .when(pl.col("t") == START)
        .then(None)
        .otherwise("mode")
        .alias("mode")
    )
    dataset = _prepare(tmp_path, log)
    assert dataset.card.categorical[0].vocabulary == ("<unknown>", "idle", "run", "stop")
    rows = split_arrays(dataset, "judged")
    late = rows["time"] > START + 500 * MINUTE
    assert (rows["categorical"][late, 0] == 0).all()
    assert split_arrays(dataset, "train")["categorical"][0, 0] == 0


def test_the_rarest_words_of_many_are_unknown(tmp_path: Path) -> None:
    words = [f"w{i:04}" for i in range(2000)] + [f"w{i:04}" for i in range(0, 2000, 2)]
    frame = pl.DataFrame({"t": START + MINUTE * np.arange(6000), "x": 1.0, "c": words + words})
    frame.write_parquet(tmp_path / "a.parquet")
    plan = make_plan(
        "a.parquet", categorical=("c",), slices={"validation_from": 0.5, "judged_from": 0.8}
    )
    vocabulary = prepare(plan, tmp_path, tmp_path / "out").card.categorical[0].vocabulary
    assert len(vocabulary) == MAX_VOCABULARY
    assert {f"w{i:04}" for i in range(0, 2000, 2)} < set(vocabulary)


def test_a_name_for_each_row_is_no_category(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sma_pilot.logs.tally.MAX_WORDS", 100)
    frame = pl.DataFrame({"t": START + MINUTE * np.arange(900), "x": 1.0, "c": range(900)})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(LogError, match="column 'c' has more than 100 distinct values"):
        prepare(make_plan("a.parquet", categorical=("c",)), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_the_same_plan_and_log_is_used_again(tmp_path: Path) -> None:
    plant().write_parquet(tmp_path / "a.parquet")
    plan = make_plan("a.parquet", **PLANT)
    prepare(plan, tmp_path, tmp_path / "out")
    card = tmp_path / "out" / "dataset.json"
    made = card.stat().st_mtime_ns, card.stat().st_ino
    os.utime(tmp_path / "a.parquet")  # touched, not changed
    told: list[str] = []
    prepare(plan, tmp_path, tmp_path / "out", lambda stage, done, total: told.append(stage))
    assert (card.stat().st_mtime_ns, card.stat().st_ino) == made
    assert told == []


def test_a_changed_log_or_plan_is_refused(tmp_path: Path) -> None:
    log = plant()
    _prepare(tmp_path, log)
    with pytest.raises(RunError, match="another plan or of a log that has changed since"):
        _prepare(tmp_path, log.with_columns(pl.col("y") + 1))
    with pytest.raises(RunError, match="another plan"):
        _prepare(tmp_path, log, max_gap="11m")


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    plant().write_parquet(tmp_path / "a.parquet")
    with pytest.raises(Exception, match=r"dataset\.json"):
        prepare(make_plan("a.parquet", **PLANT), tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


class Stopped(Exception):
    pass


STAGES = ("look at log", "read log", "sort log", "count rows", "write data set")


@pytest.mark.parametrize("stop_at", STAGES)
def test_a_stop_at_any_stage_leaves_nothing_and_goes_again(tmp_path: Path, stop_at: str) -> None:
    plant().write_parquet(tmp_path / "a.parquet")
    plan = make_plan("a.parquet", **PLANT)

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(plan, tmp_path, tmp_path / "out", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    told: dict[str, tuple[int, int | None]] = {}

    def tell(stage: str, done: int, total: int | None) -> None:
        told[stage] = (done, total)

    prepare(plan, tmp_path, tmp_path / "out", tell)
    assert tuple(told) == STAGES
    assert all(total in (None, done) for done, total in told.values())


KILLED = """
import sys, time
from pathlib import Path
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import Plan
def wait(stage, done, total):
    if stage == "write data set":
        print("writing", flush=True)
        time.sleep(60)
folder = Path(sys.argv[1])
prepare(Plan.model_validate_json(sys.argv[2]), folder, folder / "out", wait)
"""


def test_a_killed_prepare_goes_again_and_clears_up(tmp_path: Path) -> None:
    plant().write_parquet(tmp_path / "a.parquet")
    plan: Plan = make_plan("a.parquet", **PLANT)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), plan.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2  # what was killed lies in one hidden folder
    prepare(plan, tmp_path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "out"]
    PreparedDataset.open(tmp_path / "out", verify=True)


@pytest.mark.parametrize("process_is_younger", [False, True])
def test_leftovers_go_when_their_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_is_younger: bool
) -> None:
    mine, other = (tmp_path / f".out.staging-{pid}-x" for pid in (os.getpid(), "nonsense"))
    mine.mkdir()
    other.mkdir()
    plant().write_parquet(tmp_path / "a.parquet")
    if process_is_younger:  # a restarted container gives the same number again
        monkeypatch.setattr("psutil.Process.create_time", lambda process: time.time() + 60)
    prepare(make_plan("a.parquet", **PLANT), tmp_path, tmp_path / "out")
    assert mine.exists() != process_is_younger
    assert other.exists()


def test_a_log_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    plant().write_parquet(tmp_path / "a.parquet")

    def change(stage: str, done: int, total: int | None) -> None:
        if stage == "look at log":
            os.utime(tmp_path / "a.parquet", ns=(time.time_ns(), time.time_ns()))

    with pytest.raises(LogError, match=r"a\.parquet: the file changed while it was read"):
        prepare(make_plan("a.parquet", **PLANT), tmp_path, tmp_path / "out", change)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": {"validation_from": 0.32, "judged_from": 0.37}}, "into validation; move"),
        (
            {
                "slices": {
                    "validation_from": "2023-01-01T00:00:00Z",
                    "judged_from": "2024-01-01T05:00:00Z",
                }
            },
            "validation_from is 2023-01-01.*the log runs from 2024-01-01T00:00:00Z",
        ),
        ({"horizon": "1h", "label": "mute"}, "task alarm: no training row lies within"),
        ({"numeric": ("mode",), "categorical": ()}, "'mode', row 1: '.*' is no number"),
        ({"label": "mode", "categorical": ()}, "'mode', row .* is no label"),
    ],
)
def test_logs_that_do_not_fit_the_plan(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    log = plant().with_columns(pl.lit(0).alias("mute"))
    with pytest.raises(LogError, match=message):
        _prepare(tmp_path, log, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_log_of_one_row(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,x\n2024-01-01,1\n")
    with pytest.raises(LogError, match="the log runs from"):
        prepare(make_plan(name), tmp_path, tmp_path / "out")
