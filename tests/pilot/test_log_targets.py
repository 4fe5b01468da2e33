"""Sequences, events and alarm targets against a loop over rows that says what they mean."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.pilot.log_cases import MINUTE, START, make_plan, split_arrays, write

from sma_pilot.logs.blocks import Block
from sma_pilot.logs.events import EventIndex
from sma_pilot.logs.slices import OUTSIDE, Borders, SequenceCutter
from sma_pilot.logs.windows import prepare

MAX_GAP = 5


@st.composite
def machines(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Times (rising, with silences) and labels of one to three machines, in small numbers."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 6, 9]), min_size=1, max_size=40))
        time = np.cumsum(steps) + draw(st.integers(0, 10))
        # Runs of labels, unknown ones included: single random labels would seldom be watched.
        runs = draw(
            st.lists(st.tuples(st.sampled_from([-1, 0, 0, 1, 2]), st.integers(1, 9)), min_size=1)
        )
        label = [kind for kind, length in runs for _ in range(length)]
        label = (label * (len(time) // len(label) + 1))[: len(time)]
        found.append((time.tolist(), label))
    return found


@st.composite
def borders_of(draw: st.DrawFn) -> Borders:
    inner = sorted(draw(st.lists(st.integers(5, 60), min_size=3, max_size=3, unique=True)))
    return Borders((0, *inner))  # pyright: ignore[reportArgumentType]


def _blocks(log: list[tuple[list[int], list[int]]], borders: Borders, piece: int) -> list[Block]:
    cutter, found = SequenceCutter(borders, MAX_GAP), []
    for entity, (time, label) in enumerate(log):
        for start in range(0, len(time), piece):
            stamps = np.array(time[start : start + piece])
            slices, starts, gaps = cutter.cut(entity, stamps)
            empty = np.empty((len(stamps), 0))
            codes = np.array(label[start : start + piece], dtype=np.int32)
            unusable = np.empty(0, np.int64)
            found.append(Block(entity, stamps, codes, empty, (), slices, starts, gaps, unusable))
    return found


def _slice_of(time: int, borders: Borders) -> int:
    return sum(time >= edge for edge in borders.edges[1:])


def _naive_starts(time: list[int], borders: Borders) -> list[bool]:
    return [
        i == 0
        or time[i] - time[i - 1] > MAX_GAP
        or _slice_of(time[i], borders) != _slice_of(time[i - 1], borders)
        for i in range(len(time))
    ]


def _naive_event_starts(time: list[int], label: list[int], borders: Borders) -> list[int]:
    """An event starts where a row says so and the row before, of the same slice, does not."""
    found = []
    for i, moment in enumerate(time):
        number = _slice_of(moment, borders)
        goes_on = i > 0 and label[i - 1] >= 1 and _slice_of(time[i - 1], borders) == number
        if number < OUTSIDE and label[i] >= 1 and not goes_on:
            found.append(moment)
    return found


def _naive_target(time: list[int], label: list[int], borders: Borders, horizon: int) -> list[int]:
    events = _naive_event_starts(time, label, borders)
    starts = _naive_starts(time, borders)
    targets = []
    for i, moment in enumerate(time):
        number = _slice_of(moment, borders)
        if number == OUTSIDE or label[i] != 0:
            targets.append(-1)
            continue
        same = [e for e in events if _slice_of(e, borders) == number]
        if any(moment < event <= moment + horizon for event in same):
            targets.append(1)
            continue
        last = i  # how long the rows go on without a break in watching
        while last + 1 < len(time) and not starts[last + 1] and label[last + 1] != -1:
            last += 1
        targets.append(0 if time[last] >= moment + horizon else -1)
    return targets


@settings(max_examples=300, deadline=None)
@given(machines(), borders_of(), st.integers(1, 12), st.integers(1, 9))
def test_targets_mean_what_the_loop_says(
    log: list[tuple[list[int], list[int]]], borders: Borders, horizon: int, piece: int
) -> None:
    index, found = EventIndex(), _blocks(log, borders, piece)
    for block in found:
        index.add(block)
    index.finish()
    counts = np.zeros(3, np.int64)
    for entity, (time, label) in enumerate(log):
        events = _naive_event_starts(time, label, borders)
        assert index.starts_of(entity).tolist() == events
        for event in events:
            counts[_slice_of(event, borders)] += 1
        mine = [block for block in found if block.entity == entity]
        targets = [index.target(block, borders, horizon).tolist() for block in mine]
        rows = [
            (s, t)
            for block, ts in zip(mine, targets, strict=True)
            for s, t in zip(block.slices, ts, strict=True)
        ]
        wanted = _naive_target(time, label, borders, horizon)
        # Rows after judged_until are written nowhere.
        assert [t for s, t in rows if s < OUTSIDE] == [
            t for t, m in zip(wanted, time, strict=True) if _slice_of(m, borders) < OUTSIDE
        ]
    assert index.events == counts.tolist()


@settings(max_examples=100, deadline=None)
@given(machines(), borders_of(), st.integers(1, 9))
def test_sequences_start_where_the_loop_says(
    log: list[tuple[list[int], list[int]]], borders: Borders, piece: int
) -> None:
    found = _blocks(log, borders, piece)
    for entity, (time, _) in enumerate(log):
        starts = np.concatenate([block.starts for block in found if block.entity == entity])
        slices = np.concatenate([block.slices for block in found if block.entity == entity])
        assert starts.tolist() == _naive_starts(time, borders)
        assert slices.tolist() == [_slice_of(moment, borders) for moment in time]


def test_alarm_targets_reach_the_data_set(tmp_path: Path) -> None:
    label = np.zeros(100, np.int32)
    label[[20, 21, 50, 75, 90]] = 1
    rows = "".join(f"{START // 10**9 + 60 * i},{i},{label[i]}\n" for i in range(100))
    name = write(tmp_path / "a.csv", "t,x,l\n" + rows)
    slices = {"validation_from": 0.6, "judged_from": 0.8}
    plan = make_plan(name, label="l", horizon="5m", slices=slices)
    dataset = prepare(plan, tmp_path, tmp_path / "out")
    assert dataset.card.classes == ("no event within the horizon", "event within the horizon")
    train = split_arrays(dataset, "train")
    assert train["time"].tolist() == [START + i * MINUTE for i in range(60)]
    expected = [0] * 60
    for event in (20, 50):
        expected[event - 5 : event] = [1] * 5
    for i in (20, 21, 50, *range(55, 60)):  # the last five: their future is not training's
        expected[i] = -1
    assert train["target"].tolist() == expected
    assert dataset.card.provenance["slices"]["train"]["events"] == 2


def test_an_event_goes_on_across_a_silence() -> None:
    log = [([0, 1, 2, 40, 41, 42], [0, 1, 1, 1, 1, 0])]
    index = EventIndex()
    for block in _blocks(log, Borders((0, 100, 200, 300)), 2):
        index.add(block)
    assert index.starts_of(0).tolist() == [1]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_pieces_change_nothing(piece: int) -> None:
    log = [([0, 1, 2, 9, 10, 11], [0, 1, 1, 0, 0, 1]), ([3, 4], [0, 0])]
    borders = Borders((0, 10, 20, 30))
    whole, cut = EventIndex(), EventIndex()
    for index, size in ((whole, 100), (cut, piece)):
        for block in _blocks(log, borders, size):
            index.add(block)
        index.finish()

    def targets(index: EventIndex, size: int) -> NDArray[np.int32]:
        return np.concatenate([index.target(b, borders, 2) for b in _blocks(log, borders, size)])

    assert targets(whole, 100).tolist() == targets(cut, piece).tolist()
    assert pl.Series(whole.events).to_list() == cut.events
