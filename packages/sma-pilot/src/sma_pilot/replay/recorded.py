"""The legs of an arm whose answers the log has recorded: copied, and no time is spent on them.

Its scores are those of the offline scenario, its service times those of the same events that the
other arms are sent one by one. All else that a replay measures is "not measured" of it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from sma_pilot.arms.base import Scores
from sma_pilot.arms.recorded import RecordedScorer
from sma_pilot.progress import OnProgress
from sma_pilot.replay.recorder import Recorder
from sma_pilot.replay.single_stream import keys_of, write_times
from sma_pilot.replay.stream import Stream
from sma_pilot.replay.timeline import Chunk, Lane, Timeline, stack


def copy_scores(
    arm: str,
    scorer: RecordedScorer,
    timeline: Timeline,
    folder: Path,
    *,
    chunk_rows: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Leave the recorded scores of validation and judged rows as an offline leg does.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.
    """
    stage, done = f"replay {arm}", 0
    with Recorder(arm, (), timeline.entities, folder, routing=False) as recorder:
        for stretch in timeline.stretches:
            for begin in range(0, stretch.rows, chunk_rows):
                on_progress(stage, done, timeline.rows)
                end = min(begin + chunk_rows, stretch.rows)
                rows = timeline.read(stretch, begin, end)
                score = _recorded(scorer, timeline, Lane(stretch, end), begin)[0]
                lanes = (Lane(stretch, stretch.rows),)
                chunk = Chunk(lanes, begin, end, (rows,), stack([rows]), None)
                recorder.add(chunk, Scores(score[None]))
                done += end - begin
    on_progress(stage, done, timeline.rows)
    return {"rows": done, "seconds": None, "rows_per_second": None, **recorder.activation.figures()}


def copy_times(
    arm: str,
    visit: int,
    scorer: RecordedScorer,
    timeline: Timeline,
    stream: Stream,
    folder: Path,
    *,
    warmup: int,
) -> dict[str, Any]:
    """Leave the recorded service times of the events of `stream`, but for the first `warmup`.

    An event without one is left out, so that nothing rests on it.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.
    """
    counts = np.bincount(stream.lane, minlength=len(stream.past)).tolist()
    blocks = []
    for lane, count in zip(stream.past, counts, strict=True):
        _, times = _recorded(scorer, timeline, Lane(lane.stretch, lane.stop + count), lane.stop)
        blocks.append(iter(times.tolist()))
    service = np.array([next(blocks[lane]) for lane in stream.lane], dtype=np.int64)
    events = keys_of(timeline, stream).with_columns(service_ns=service)[warmup:]
    known = (
        events.with_row_index("query")
        .filter(pl.col("service_ns") > 0)
        .with_columns(active_share=pl.lit(np.nan, dtype=pl.Float32))
    )
    write_times(known, arm, visit, folder)
    seconds = float(known["service_ns"].sum()) / 1e9
    return {
        "rows": known.height,
        "seconds": seconds,
        "rows_per_second": known.height / seconds if seconds > 0 else None,
        "activation_rate": None,
        "score_difference": None,
    }


def _recorded(
    scorer: RecordedScorer, timeline: Timeline, lane: Lane, begin: int
) -> tuple[Tensor, Tensor]:
    """Return scores and service times of a lane's rows from `begin` on."""
    places = timeline.places(lane.stretch, begin, lane.stop)
    scores, times = zip(*(scorer.recorded(*place) for place in places), strict=True)
    return torch.cat(scores), torch.cat(times)
