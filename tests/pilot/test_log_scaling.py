"""Centres and scales against numpy, and the cases without anything to divide by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pilot.log_cases import PLANT, START, make_plan, plant, split_arrays, write

from sma_pilot.logs.scaling import CLIP, Moments, Scaler
from sma_pilot.logs.windows import prepare

numbers = st.floats(-1e6, 1e6) | st.just(float("nan"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(numbers, numbers), max_size=20), min_size=1, max_size=6))
def test_moments_of_pieces_are_those_of_the_whole(pieces: list[list[tuple[float, float]]]) -> None:
    moments = Moments(2)
    for piece in pieces:
        moments.add(np.array(piece, dtype=np.float64).reshape(-1, 2))
    whole = np.concatenate([np.array(p, dtype=np.float64).reshape(-1, 2) for p in pieces])
    for channel in range(2):
        values = whole[:, channel]
        values = values[~np.isnan(values)]
        assert moments.count[channel] == len(values)
        if len(values):
            # A sum of squares is exact to rounding of the largest value.
            room = 1e-9 * max(1.0, np.abs(values).max())
            assert moments.mean[channel] == pytest.approx(values.mean(), rel=1e-9, abs=room)
            assert moments.deviation[channel] == pytest.approx(values.std(), rel=1e-6, abs=room)
            assert moments.low[channel] == values.min()
            assert moments.high[channel] == values.max()


def test_a_large_offset_does_not_cancel() -> None:
    values = 1e9 + np.array([[0.0], [1.0], [2.0]])
    moments = Moments(1)
    for row in values:
        moments.add(row[None])
    assert moments.deviation[0] == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("scaling", ["per_entity", "global"])
def test_values_are_scaled_by_training_rows(tmp_path: Path, scaling: str) -> None:
    log = plant()
    log.write_parquet(tmp_path / "a.parquet")
    plan = make_plan("a.parquet", **PLANT, scaling=scaling)
    dataset = prepare(plan, tmp_path, tmp_path / "out")
    edges = dataset.card.provenance["borders_ns"]
    train = log.filter(pl.col("t") < edges[1])
    for name, low, high in zip(("train", "validation", "judged"), edges, edges[1:], strict=False):
        arrays = split_arrays(dataset, name)
        expected = []
        for machine in ("m0", "m1", "m2"):
            mine = pl.col("machine") == machine
            base = (train.filter(mine) if scaling == "per_entity" else train).select("x", "y")
            base = base.to_numpy()
            rows = log.filter(mine, pl.col("t") >= low, pl.col("t") < high).sort("t")
            raw = rows.select("x", "y").to_numpy()
            expected.append((raw - np.nanmean(base, axis=0)) / np.nanstd(base, axis=0))
        wanted = np.clip(np.concatenate(expected), -CLIP, CLIP)
        np.testing.assert_allclose(arrays["numeric"], wanted, rtol=1e-5, atol=1e-5)
        assert np.isnan(arrays["numeric"]).any()


def _scaled(tmp_path: Path, cells: list[str]) -> tuple[np.ndarray, Mapping[str, Any]]:
    rows = "".join(f"{START // 10**9 + 60 * i},{cell}\n" for i, cell in enumerate(cells))
    name = write(tmp_path / "a.csv", "t,x\n" + rows)
    dataset = prepare(make_plan(name), tmp_path, tmp_path / "out")
    names = ("train", "validation", "judged")
    values = [split_arrays(dataset, name)["numeric"] for name in names]
    return np.concatenate(values)[:, 0], dataset.card.provenance


def test_a_constant_channel_keeps_its_own_unit(tmp_path: Path) -> None:
    values, _ = _scaled(tmp_path, ["7"] * 6 + ["8", "9", "10", "7"])
    assert values.tolist() == [0.0] * 6 + [1.0, 2.0, 3.0, 0.0]


def test_a_channel_that_is_empty_in_training(tmp_path: Path) -> None:
    values, _ = _scaled(tmp_path, [""] * 6 + ["8", "-9", "", "1"])
    np.testing.assert_array_equal(values, [np.nan] * 6 + [8.0, -9.0, np.nan, 1.0])


def test_infinite_and_huge_values_are_missing_and_counted(tmp_path: Path) -> None:
    cells = ["1", "inf", "3", "-Infinity", "1e300", "2", "1e400", "NaN", "2", "2"]
    values, provenance = _scaled(tmp_path, cells)
    assert np.isnan(values).tolist() == [cell not in "123" for cell in cells]
    assert provenance["values_not_finite"] == 4
    assert provenance["scaling"]["entities"]["log"]["center"] == [2.0]


def test_spikes_are_clipped(tmp_path: Path) -> None:
    values, _ = _scaled(tmp_path, ["0", "1"] * 3 + ["1000", "-1000", "0", "1"])
    assert values[6:8].tolist() == [CLIP, -CLIP]


def test_a_quiet_machine_does_not_blow_up_its_noise() -> None:
    loud, quiet = Moments(1), Moments(1)
    loud.add(np.array([[-100.0], [100.0]]))
    quiet.add(np.array([[5.0], [5.001]]))
    scaler = Scaler.fit([loud, quiet], per_entity=True)
    assert scaler.scale[1, 0] == 0.01 * scaler.fleet_scale[0]


def test_a_machine_that_training_does_not_know_takes_the_fleets_scale() -> None:
    known = Moments(1)
    known.add(np.array([[0.0], [2.0]]))
    scaler = Scaler.fit([known, Moments(1)], per_entity=True)
    assert (scaler.center[1, 0], scaler.scale[1, 0]) == (1.0, 1.0)
