"""The single-stream scenario: one event at a time, as a machine sends them, for latency.

A run of consecutive judged events, all entities merged in order of time, goes through `Scorer.step`
one by one. The next event is sent when the one before it is answered, so there is no queue, and
what is measured is service time. Each entity's state is the one that the offline scenario reaches
where the run begins.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scorer
from sma_pilot.errors import RunError
from sma_pilot.replay.clock import Clock, garbage_collector_off
from sma_pilot.replay.meters import release_freed_memory
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.stream import Stream
from sma_pilot.replay.timeline import Timeline, stack

Step = Callable[[Any, Any], tuple[float, Decisions]]


def run_single_stream(
    arm: str,
    visit: int,
    scorer: Scorer,
    timeline: Timeline,
    stream: Stream,
    folder: Path,
    *,
    chunk_rows: int,
    warmup: int,
    clock: Clock,
    sample_memory: Callable[[], None],
) -> dict[str, Any]:
    """Send the events of `stream` to an arm, one by one.

    The clock is read right before and right after `Scorer.step`, which takes an event in host
    memory to a score in host memory. Everything else is made ready before the first event or done
    after the last: tensors of the events, states, counts. The garbage collector is off in between.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    visit : int
        Which pass of the scenario this is.
    scorer, timeline, stream
    folder : Path
        The replay folder; it holds the arm's offline scores already.
    chunk_rows : int
        Rows of a sequence in one forward, on the way to where the stream begins.
    warmup : int
        Events at the start of the stream that are sent and not recorded.
    clock : Clock
    sample_memory : callable
        Called when the last event is answered and all states are still held.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.

    Raises
    ------
    RunError
        Stream and offline scores disagree on which rows have a score.
    """
    with torch.inference_mode():
        states = states_before(scorer, timeline, stream, chunk_rows)
        events = events_of(timeline, stream)
        calls = [(event, states[lane]) for event, lane in zip(events, stream.lane, strict=True)]
        # What the way to the start needed is no part of what the stream holds.
        release_freed_memory()
        scores, service, decided = send(scorer.step, calls, clock)
        sample_memory()
    shares = np.array([_active_share(decisions) for decisions in decided], dtype=np.float32)
    frame = keys_of(timeline, stream).with_columns(
        service_ns=np.array(service, dtype=np.int64),
        active_share=shares,
        score=np.array(scores, dtype=np.float32),
    )
    difference = _score_difference(arm, frame, folder)
    recorded = frame[warmup:].with_row_index("query")
    write_times(recorded, arm, visit, folder)
    seconds = sum(service[warmup:]) / 1e9
    routed = shares[warmup:][~np.isnan(shares[warmup:])]
    return {
        "rows": recorded.height,
        "seconds": seconds,
        "rows_per_second": recorded.height / seconds if seconds > 0 else None,
        "activation_rate": float(routed.mean()) if routed.size else None,
        "score_difference": difference,
    }


def keys_of(timeline: Timeline, stream: Stream) -> pl.DataFrame:
    """Return entity and time of each event."""
    entities = pl.Series(timeline.entities, dtype=pl.Enum(timeline.entities))
    entity = np.array([lane.stretch.entity for lane in stream.past], dtype=np.uint32)
    return pl.DataFrame({"entity": entities.gather(entity[stream.lane]), "time": stream.time})


def write_times(events: pl.DataFrame, arm: str, visit: int, folder: Path) -> None:
    """Leave the service times of a pass.

    Parameters
    ----------
    events : polars.DataFrame
        ``query``, its place in the pass; ``entity``, ``time``, ``service_ns`` and ``active_share``,
        NaN of an arm that does not route.
    arm, visit, folder
        As in `run_single_stream`.
    """
    with PartWriter(folder / "latency", f"{arm}-{visit:03d}") as parts:
        parts.add(
            events.select(
                pl.lit(arm).alias("arm"),
                pl.lit("single_stream").alias("scenario"),
                pl.lit(visit, dtype=pl.Int32).alias("pass"),
                pl.col("query").cast(pl.Int64),
                "entity",
                "time",
                "service_ns",
                pl.col("active_share").fill_nan(None),
            )
        )


def send(
    step: Step, calls: Sequence[tuple[Any, Any]], clock: Clock
) -> tuple[list[float], list[int], list[Decisions]]:
    """Send events one by one; return scores, service times in ns, and decisions."""
    scores: list[float] = []
    service: list[int] = []
    decided: list[Decisions] = []
    with garbage_collector_off():
        for event, state in calls:
            begin = clock()
            score, decisions = step(event, state)
            end = clock()
            service.append(end - begin)
            scores.append(score)
            decided.append(decisions)
    return scores, service, decided


def harness_ns(clock: Clock, events: int = 2001) -> float:
    """Return what the harness itself takes with an event: the loop with a model that does nothing.

    Mean time an event in ns. A part of it lies between the two readings of the clock, and with
    that in every service time; the rest is what a stream takes longer than its service times say.
    """
    calls = [(None, None)] * events
    begin = clock()
    send(lambda event, state: (0.0, ()), calls, clock)
    return (clock() - begin) / events


def states_before(scorer: Scorer, timeline: Timeline, stream: Stream, chunk_rows: int) -> list[Any]:
    """Return the state of each lane after all rows before its first event."""
    place = {lane.stretch: index for index, lane in enumerate(stream.past)}
    states = [scorer.start(1) for _ in stream.past]
    lanes = [lane for lane in stream.past if lane.stop > 0]
    for chunk in timeline.walk(scorer, lanes, chunk_rows):
        scorer.score(chunk.inputs, chunk.state)
        for i, lane in enumerate(chunk.lanes):
            if lane.stop == chunk.end:
                states[place[lane.stretch]] = chunk.state.select(torch.tensor([i]))
    return states


def events_of(timeline: Timeline, stream: Stream) -> list[Inputs]:
    """Return the inputs [1, 1, channels] of each event, views of one block of rows per lane."""
    counts = np.bincount(stream.lane, minlength=len(stream.past))
    blocks = []
    for lane, count in zip(stream.past, counts.tolist(), strict=True):
        rows = stack([timeline.read(lane.stretch, lane.stop, lane.stop + count)])
        blocks.append(iter([rows.map(lambda t, i=i: t[:, i : i + 1]) for i in range(count)]))
    return [next(blocks[lane]) for lane in stream.lane]


def _active_share(decisions: Decisions) -> float:
    """Share of layers and sub-modules that ran; NaN for an arm that does not route."""
    if not decisions:
        return float("nan")
    return torch.stack([d.active.float().mean() for d in decisions]).mean().item()


def _score_difference(arm: str, frame: pl.DataFrame, folder: Path) -> float | None:
    """Largest |stream - offline| of a row, relative to the offline score.

    A score near zero is taken relative to the median one: relative to itself any rounding would
    look large. None when no row has a score.
    """
    if frame.is_empty():
        return None
    offline = (
        pl.scan_parquet(sorted((folder / "scores").glob(f"part-{arm}-[0-9]*.parquet")))
        .filter(
            pl.col("slice") == "judged",
            pl.col("time").is_between(frame["time"].min(), frame["time"].max()),
        )
        .select("entity", "time", offline="score")
        .collect()
    )
    both = frame.select("entity", "time", "score").join(
        offline, on=["entity", "time"], how="left", maintain_order="left", validate="1:1"
    )
    scored = both.select(pl.col("score", "offline").is_not_nan())
    unlike = both.filter(scored["score"] != scored["offline"].fill_null(False))
    if not unlike.is_empty():
        entity, time, stream_score, offline_score = unlike.row(0)
        raise RunError(
            f"arm {arm!r} gives entity {entity!r} at time {time} ns the score {stream_score} in a "
            f"stream and {offline_score} offline; its model does not stream as it trains"
        )
    known = both.filter(scored["score"])
    if known.is_empty():
        return None
    stream_scores, offline_scores = (known[name].to_numpy() for name in ("score", "offline"))
    size = np.abs(offline_scores.astype(np.float64))
    size = np.maximum(size, max(float(np.median(size)), np.finfo(np.float32).tiny))
    return float((np.abs(stream_scores - offline_scores) / size).max())
