"""The demo's synthetic log: what it says it holds, it holds; and a half-made one never counts."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.pilot.demo_cases import demo_plan
from tests.pilot.replay_cases import quiet

from sma_pilot.demo import history as history_module
from sma_pilot.demo import make_demo_log
from sma_pilot.demo.failures import BEARING, COOLANT, ENCODER, KINDS, draw_failures, severity
from sma_pilot.demo.history import MACHINES, START
from sma_pilot.demo.plant import PRODUCTS, SLOTS_PER_DAY, simulate
from sma_pilot.errors import LogError

SMALL_DAYS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log at its full size."""
    folder = tmp_path_factory.mktemp("demo") / "log"
    make_demo_log(folder, on_progress=quiet)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> pl.DataFrame:
    """All rows in the order in which the historian wrote them."""
    return pl.concat([read(path) for path in sorted((folder / "telemetry").iterdir())])


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path).with_columns(pl.col("failure").cast(pl.Int64))
    frame = pl.read_csv(path, infer_schema_length=None)
    return frame.with_columns(pl.col("timestamp").str.to_datetime(time_unit="ms"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_has_the_size_that_it_promises(folder: Path, rows: pl.DataFrame):
    assert rows.height >= 200_000
    assert json.loads((folder / "demo-log.json").read_text())["rows"] == rows.height
    assert f"{rows.height:,} rows" in (folder / "README.md").read_text()
    assert rows["machine"].n_unique() == len(MACHINES)
    assert len(rows.select(pl.col(pl.Float64)).columns) == 14


def test_it_says_plainly_that_it_is_synthetic(folder: Path):
    assert "SYNTHETIC" in (folder / "README.md").read_text()
    assert "SYNTHETIC" in demo_plan().description
    assert json.loads((folder / "demo-log.json").read_text())["synthetic"] is True


def test_files_are_of_two_formats(folder: Path):
    assert {path.suffix for path in (folder / "telemetry").iterdir()} == {".csv", ".parquet"}


def test_rows_come_late_and_twice(rows: pl.DataFrame):
    late = pl.col("timestamp") < pl.col("timestamp").cum_max().over("machine")
    repeated = pl.struct("machine", "timestamp").is_duplicated()
    shares = rows.select(late=late.mean(), repeated=repeated.mean()).row(0, named=True)
    assert 0.01 < shares["late"] < 0.03
    assert 0.01 < shares["repeated"] < 0.03  # both of a pair count
    # A row that is sent again is whole, so that taking the last one mends something.
    last = rows.group_by("machine", "timestamp", maintain_order=True).last()
    first = rows.group_by("machine", "timestamp", maintain_order=True).first()
    holes = [sum(frame.null_count().row(0)) for frame in (first, last)]
    assert holes[1] < holes[0]


def test_machines_fall_silent(rows: pl.DataFrame):
    step = pl.col("timestamp").diff().over("machine")
    steps = (
        rows.unique(["machine", "timestamp"]).sort("machine", "timestamp").select("machine", step)
    )
    silences = steps.filter(pl.col("timestamp") > pl.duration(hours=1))
    assert silences.group_by("machine").len()["len"].min() >= 10  # type: ignore[operator]
    assert silences["timestamp"].max() >= np.timedelta64(6, "h")  # type: ignore[operator]


def test_sensors_drop_out_and_nothing_else_does(rows: pl.DataFrame):
    missing = rows.select(pl.all().null_count() / pl.len()).row(0, named=True)
    whole = {"timestamp", "machine", "product", "shift", "set_speed_rpm", "failure"}
    assert {name for name, share in missing.items() if share == 0} == whole
    assert max(missing.values()) < 0.05


def test_each_slice_holds_each_kind_and_the_judged_one_enough_to_judge(rows: pl.DataFrame):
    borders = demo_plan().slices
    time = pl.col("timestamp")
    place = (time - time.min()) / (time.max() - time.min())
    begins = (pl.col("failure") > 0) & (pl.col("failure").shift(1).over("machine") == 0)
    counts = (
        rows.unique(["machine", "timestamp"])
        .sort("machine", "timestamp")
        .with_columns(
            begins=begins,
            slice=(place >= borders.validation_from).cast(pl.Int8)
            + (place >= borders.judged_from).cast(pl.Int8),
        )
        .filter("begins")
        .group_by("slice", "failure")
        .len()
    )
    assert counts.height == 3 * len(KINDS)
    assert counts["len"].min() >= 15  # type: ignore[operator]
    assert counts.filter(pl.col("slice") == 2)["len"].sum() >= 100


def test_products_and_set_points_change(rows: pl.DataFrame):
    assert set(rows["product"]) == set(PRODUCTS)
    speeds = rows.group_by("product").agg(pl.col("set_speed_rpm").mean())["set_speed_rpm"]
    assert speeds.max() > 1.5 * speeds.min()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "channel", "sign"),
    [
        (BEARING, "vibration_rms_mm_s", 1),
        (BEARING, "bearing_temp_c", 1),
        (COOLANT, "coolant_flow_l_min", -1),
        (COOLANT, "coolant_temp_c", 1),
        (ENCODER, "position_jitter_um", 1),
    ],
)
def test_signs_precede_a_failure_and_are_of_its_kind(kind: int, channel: str, sign: int):
    """The same random numbers with the failures of one kind taken out show what they add."""
    slots = 60 * SLOTS_PER_DAY
    failures = draw_failures(np.random.default_rng(1), slots)
    others = [failure for failure in failures if failure.kind != kind]
    with_kind, without = (
        simulate(np.random.default_rng(2), slots, drawn)[channel].to_numpy()
        for drawn in (failures, others)
    )
    excess = sign * (with_kind - without) / without.std()
    before = [excess[f.start - 6 : f.start].mean() for f in failures if f.kind == kind]
    far = [excess[f.onset - 6 : f.onset].mean() for f in failures if f.kind == kind]
    assert np.mean(before) > 0.3
    assert abs(np.mean(far)) < 0.1 * np.mean(before)


def test_severity_rises_up_to_the_failure():
    failures = draw_failures(np.random.default_rng(3), 30 * SLOTS_PER_DAY)
    for kind in KINDS:
        curve = severity(failures, kind, 30 * SLOTS_PER_DAY)
        for failure in (failure for failure in failures if failure.kind == kind):
            assert curve[failure.onset] == 0
            assert (np.diff(curve[failure.onset : failure.start]) > 0).all()
            assert (curve[failure.start : failure.stop] == 1).all()
        assert curve.max() == 1


def test_failures_follow_each_other_without_overlap():
    failures = draw_failures(np.random.default_rng(4), 200 * SLOTS_PER_DAY)
    for failure, following in pairwise(failures):
        assert failure.onset < failure.start < failure.stop < following.onset


def test_a_seed_makes_the_same_log_and_another_seed_another(tmp_path: Path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        make_demo_log(tmp_path / name, on_progress=quiet, days=SMALL_DAYS, seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "same")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_a_whole_log_is_kept_and_another_one_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(history_module, "simulate", None)  # it is not made again
        make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS)
    make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS, seed=5)
    assert contents(tmp_path) != before


@pytest.mark.parametrize("harm", ["cut", "lost", "extra", "no card", "bad card"])
def test_a_damaged_log_is_made_again(tmp_path: Path, harm: str):
    make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS)
    before = contents(tmp_path)
    month = tmp_path / "telemetry" / f"{START:%Y-%m}.csv"
    if harm == "cut":
        month.write_bytes(month.read_bytes()[:-1000])
    elif harm == "lost":
        month.unlink()
    elif harm == "extra":
        (tmp_path / "telemetry" / "2025-01.csv").write_text("timestamp\n")
    elif harm == "no card":
        (tmp_path / "demo-log.json").unlink()
    else:
        (tmp_path / "demo-log.json").write_text("[")
    make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stop_at", range(8))
def test_a_stop_at_any_moment_leaves_no_log_that_counts(tmp_path: Path, stop_at: int):
    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int | None) -> None:
        if done >= stop_at:
            raise Stopped

    whole = tmp_path / "whole"
    make_demo_log(whole, on_progress=quiet, days=SMALL_DAYS)
    broken = tmp_path / "broken"
    with pytest.raises(Stopped):
        make_demo_log(broken, on_progress=stop, days=SMALL_DAYS)
    finished = stop_at == len(MACHINES) + 1
    assert (broken / "demo-log.json").exists() == finished
    make_demo_log(broken, on_progress=quiet, days=SMALL_DAYS)
    assert contents(broken) == contents(whole)


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path):
    (tmp_path / "telemetry").mkdir()
    (tmp_path / "telemetry" / "mine.csv").write_text("precious")
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(LogError, match="not of the demo; give another --out"):
        make_demo_log(tmp_path, on_progress=quiet, days=SMALL_DAYS)
    assert contents(tmp_path) == {"mine.csv": b"precious", "README.md": b"my own"}
