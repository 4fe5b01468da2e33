"""Which rows a replay walks, in which order, and which of them make its stream."""

import numpy as np
import pytest
import torch
from tests.pilot.replay_cases import (
    MINUTE,
    START,
    FakeClock,
    SumScorer,
    make_dataset,
)

from sma_core.dataset import PreparedDataset
from sma_pilot.replay.stream import choose_stream
from sma_pilot.replay.timeline import Lane, Timeline

HOUR_NS = 60 * MINUTE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


# The timeline.


def test_a_short_silence_at_the_border_is_bridged_and_a_long_one_is_not(dataset):
    stretches = {
        (s.entity, s.border, s.rows) for s in Timeline(dataset, max_gap_ns=HOUR_NS).stretches
    }
    assert stretches == {(0, 60, 150), (1, 40, 40), (1, 0, 60), (2, 0, 1), (3, 0, 33)}
    patient = Timeline(dataset, max_gap_ns=4 * HOUR_NS).stretches
    assert (1, 40, 100) in {(s.entity, s.border, s.rows) for s in patient}


def test_only_neighbours_across_the_border_are_joined(tmp_path):
    pieces = (
        ("train", 0, 0, 5),
        ("validation", 0, 10, 4),
        ("validation", 0, 200, 6),
        ("judged", 0, 210, 7),
        ("judged", 0, 400, 8),
    )
    timeline = Timeline(make_dataset(tmp_path / "dataset", pieces), HOUR_NS)
    assert {(s.border, s.rows) for s in timeline.stretches} == {(4, 4), (6, 13), (0, 8)}


@pytest.mark.parametrize("chunk_rows", [1, 16, 1000])
def test_every_row_is_walked_once_and_in_order(dataset, chunk_rows):
    timeline = Timeline(dataset, HOUR_NS)
    lanes = [Lane(s, s.rows) for s in timeline.stretches] * 3  # more than walk side by side
    seen: dict[int, int] = {}
    rows = 0
    scorer = SumScorer(FakeClock())
    for chunk in timeline.walk(scorer, lanes, chunk_rows):
        assert 0 < chunk.end - chunk.begin <= chunk_rows
        assert chunk.inputs.steps == chunk.end - chunk.begin
        scorer.score(chunk.inputs, chunk.state)
        for i, lane in enumerate(chunk.lanes):
            assert chunk.state.count[i] == chunk.end
            assert lane.stop >= chunk.end
            rows += chunk.end - chunk.begin
            seen[id(lane)] = chunk.end
    assert rows == 3 * timeline.rows
    assert all(seen[id(lane)] == lane.stop for lane in lanes)


def test_a_read_across_the_border_is_the_two_reads_joined(dataset):
    timeline = Timeline(dataset, HOUR_NS)
    stretch = next(s for s in timeline.stretches if s.border and s.rows > s.border)
    across = timeline.read(stretch, 55, 66)
    assert across.time.tolist() == [START + MINUTE * (150 + minute) for minute in range(55, 66)]
    parts = [timeline.read(stretch, 55, 60), timeline.read(stretch, 60, 66)]
    for column in ("numeric", "label"):
        joined = torch.cat([getattr(part, column) for part in parts])
        torch.testing.assert_close(getattr(across, column), joined, rtol=0, atol=0, equal_nan=True)


# The stream.


def judged_events(dataset: PreparedDataset) -> list[tuple[int, int]]:
    split = dataset.split("judged")
    return sorted(
        (time, entity)
        for entity, start, stop in split.sequences
        for time in split.read(start, stop).time.tolist()
    )


@pytest.mark.parametrize("size", [1, 30, 150, 183])
def test_a_stream_is_a_run_of_consecutive_events(dataset, size):
    timeline = Timeline(dataset, HOUR_NS)
    events = judged_events(dataset)
    for seed in range(20):
        stream = choose_stream(timeline, size, str(seed))
        got = [
            (time, stream.past[lane].stretch.entity)
            for time, lane in zip(stream.time.tolist(), stream.lane.tolist(), strict=True)
        ]
        assert len(got) == size
        first = events.index(got[0])
        # Events of the first moment that come before it may be left to the past, none after it.
        assert got == events[first : first + size]
        for index, lane in enumerate(stream.past):
            own = stream.time[stream.lane == index]
            rows = timeline.read(lane.stretch, lane.stop, lane.stop + len(own))
            assert rows.time.tolist() == own.tolist()


def test_streams_begin_everywhere_and_the_same_seed_gives_the_same(dataset):
    timeline = Timeline(dataset, HOUR_NS)
    starts = [choose_stream(timeline, 20, str(seed)).time[0] for seed in range(60)]
    assert starts == [choose_stream(timeline, 20, str(seed)).time[0] for seed in range(60)]
    span = judged_events(dataset)[-20][0] - judged_events(dataset)[0][0]
    share = (np.array(starts) - judged_events(dataset)[0][0]) / span
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_a_log_with_fewer_events_is_streamed_whole(dataset):
    stream = choose_stream(Timeline(dataset, HOUR_NS), 10_000, "0")
    assert stream.time.tolist() == [time for time, _ in judged_events(dataset)]
