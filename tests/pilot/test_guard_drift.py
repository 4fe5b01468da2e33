"""Drift: the index is the textbook's, it sees each kind of change, and the guard acts on it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pilot.guard_cases import Bench
from tests.pilot.replay_cases import make_dataset, quiet

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_pilot.guard import DriftReference, DriftWindow
from sma_pilot.guard.drift import tenths
from sma_pilot.plan import GuardPlan


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("drift") / "dataset", categorical=True)


@pytest.fixture(scope="module")
def reference(dataset) -> DriftReference:
    return DriftReference.of(dataset.split("train"), quiet)


def coin() -> DriftReference:
    """One channel of two categories: three training rows in four show the first."""
    return DriftReference(
        channels=("mode",),
        tables=(np.array([0, 1, 2], np.uint8),),
        share=np.array([[0.75, 0.25, 0.0]]),
    )


def categories(*values: int) -> Inputs:
    return Inputs(categorical=torch.tensor(values)[None, :, None])


def test_an_index_computed_by_hand():
    window = DriftWindow(coin(), 4)
    index, channel = window.push(categories(0, 1, 1, 1, 1))
    assert np.isnan(index[:3]).all()
    # Half a row in each of three bins: expected 3.5, 1.5, 0.5 of 5.5 rows, seen 1.5, 3.5, 0.5.
    expected = 2 * (2 / 5.5) * math.log(3.5 / 1.5)
    assert index[3] == pytest.approx(expected)
    # The first row has left the window: 0.5, 4.5, 0.5.
    expected = 3 / 5.5 * math.log(3.5 / 0.5) + 3 / 5.5 * math.log(4.5 / 1.5)
    assert index[4] == pytest.approx(expected)
    assert channel.tolist() == [0] * 5


def test_the_window_of_training_itself_has_not_drifted():
    assert DriftWindow(coin(), 4).push(categories(0, 0, 0, 1))[0][3] == pytest.approx(0.0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-1, 4), min_size=8, max_size=40),
    st.integers(1, 39),
)
def test_however_rows_are_cut_the_index_is_that_of_the_last_rows(values, cut):
    whole = DriftWindow(coin(), 8)
    index = whole.push(categories(*values))[0]
    parts = DriftWindow(coin(), 8)
    pieces = [part for part in (values[:cut], values[cut:]) if part]
    pushed = np.concatenate([parts.push(categories(*piece))[0] for piece in pieces])
    np.testing.assert_array_equal(pushed, index)
    fresh = DriftWindow(coin(), 8).push(categories(*values[-8:]))[0]
    assert fresh[-1] == pytest.approx(index[-1])


def test_a_reference_counts_every_training_row_once(dataset, reference):
    assert reference.channels == ("x", "y", "z", "mode")
    np.testing.assert_allclose(reference.share.sum(1), 1.0)
    # Tenths of the known values, and the missing ones apart.
    missing = dataset.split("train").read(0, dataset.split("train").rows).numeric.isnan()
    for channel in range(3):
        share = missing[:, channel].float().mean().item()
        assert reference.share[channel, 10] == pytest.approx(share)
        np.testing.assert_allclose(reference.share[channel, :10], (1 - share) / 10, atol=0.01)


def window_of(numeric: np.ndarray, mode: np.ndarray | None = None) -> Inputs:
    mode = np.arange(len(numeric)) % 3 if mode is None else mode
    return Inputs(
        numeric=torch.from_numpy(numeric.astype(np.float32))[None],
        categorical=torch.from_numpy(mode.astype(np.int64))[None, :, None],
    )


def changed(kind: str, rows: np.ndarray) -> Inputs:
    mode = None
    rows = rows.copy()
    if kind == "level":
        rows[:, 2] += 1.5
    elif kind == "spread":
        rows[:, 2] *= 0.1
    elif kind == "sensor lost":
        rows[:, 2] = np.nan
    elif kind == "infinite":
        rows[:, 2] = np.inf
    elif kind == "stuck":
        rows[:, 2] = 0.3
    elif kind == "categories":
        mode = np.zeros(len(rows))
    elif kind == "unknown category":
        mode = np.full(len(rows), 99)
    return window_of(rows, mode)


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        ("level", "z"),
        ("spread", "z"),
        ("sensor lost", "z"),
        ("infinite", "z"),
        ("stuck", "z"),
        ("categories", "mode"),
        ("unknown category", "mode"),
    ],
)
def test_each_kind_of_change_is_seen_in_its_channel(dataset, reference, kind, channel):
    numeric = dataset.split("train").read(0, 150).numeric.numpy()
    usual = DriftWindow(reference, 119)  # a whole number of each channel's cycles, near enough
    assert usual.push(changed("none", numeric))[0][-1] < 0.25
    window = DriftWindow(reference, 119)
    index, place = window.push(changed(kind, numeric))
    assert index[-1] > 1.0
    assert reference.channels[place[-1]] == channel


def test_so_many_channels_must_drift_at_once(dataset, reference):
    rows = changed("level", dataset.split("train").read(0, 150).numeric.numpy())
    one, two = DriftWindow(reference, 100, 1), DriftWindow(reference, 100, 2)
    assert one.push(rows)[0][-1] > 1.0 > two.push(rows)[0][-1]
    assert sorted(two.indices())[-2] == two.push(rows)[0][-1]


def test_copies_go_their_own_way():
    window = DriftWindow(coin(), 4)
    window.push(categories(0, 0, 0))
    twin = window.copy()
    assert twin.push(categories(0))[0] != window.push(categories(1))[0]
    assert window.nbytes == twin.nbytes


def test_the_guard_falls_back_on_drift_and_names_the_channel():
    # Training knew the value 1 to 30 in the last channel, each once; orders were always 0.
    known = (np.arange(1, 31) * 0.1)[:, None] * [0, 0, 1]
    fine = np.zeros((3, 4002), np.int64)
    steps = np.rint((known + 10) * 200).astype(int)
    for channel in range(3):
        np.add.at(fine[channel], steps[:, channel], 1)
    tables = tuple(tenths(own) for own in fine)
    share = np.array(
        [
            np.bincount(table, own, minlength=11) / 30
            for table, own in zip(tables, fine, strict=True)
        ]
    )
    reference = DriftReference(channels=("a", "b", "load"), tables=tables, share=share)
    bench = Bench(GuardPlan(window_rows=10, hold_rows=4, drift_limit=0.6), reference)
    values = np.concatenate([np.arange(0.3, 3.1, 0.3), np.full(12, 2.9)])
    rows = np.zeros((len(values), 3), np.float32)
    rows[:, 2] = values
    scores = bench.run(Inputs(numeric=torch.from_numpy(rows)[None]), [3, 12])
    events = bench.guarded.take_fallbacks()
    assert {event.reason for event in events} == {"drift"}
    assert {event.detail for event in events} == {"load"}
    assert all(event.value is not None and event.value > 0.6 for event in events)
    begun = next(t for t, score in enumerate(scores) if score < 0)
    assert 10 < begun < 16
    # It stays: each time its hold ends the drift is still there, and the candidate is not asked.
    assert all(score < 0 for score in scores[begun:])
    assert [event.renewed for event in events] == [False] + [True] * (len(events) - 1)
