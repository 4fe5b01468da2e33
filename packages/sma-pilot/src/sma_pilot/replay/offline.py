"""The offline scenario: all rows as fast as they go, for scores and for throughput."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sma_pilot.arms.base import Scorer, Scores
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock
from sma_pilot.replay.failure import scoring_failed
from sma_pilot.replay.recorder import Recorder
from sma_pilot.replay.timeline import Chunk, Timeline

TIMED_ROWS = 500_000
"""Least rows that tell the throughput of an arm whose scores are made elsewhere."""


def run_offline(
    arm: str,
    scorer: Scorer,
    timeline: Timeline,
    folder: Path,
    *,
    chunk_rows: int,
    routing: bool,
    clock: Clock,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Score every row of validation and judged time.

    The time that counts is that of `Scorer.score` alone: reading rows and writing scores cost
    every arm the same and are no part of it.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    scorer : Scorer
    timeline : Timeline
    folder : Path
        The replay folder.
    chunk_rows : int
        Most rows of one sequence in one forward.
    routing : bool
        Whether each routing decision on judged rows is kept, too.
    clock : Clock
    on_progress : OnProgress

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.
    """
    stage = f"replay {arm}"
    elapsed = done = 0
    recorder = Recorder(arm, scorer.submodules, timeline.entities, folder, routing=routing)
    with recorder, torch.inference_mode():
        on_progress(stage, 0, timeline.rows)
        for chunk, scores, taken in _timed(arm, scorer, timeline, chunk_rows, clock):
            elapsed += taken
            recorder.add(chunk, scores)
            done += chunk.size
            on_progress(stage, done, timeline.rows)
    seconds = elapsed / 1e9
    return {
        "rows": done,
        "seconds": seconds,
        "rows_per_second": done / seconds if seconds > 0 else None,
        **recorder.activation.figures(),
    }


def time_offline(
    arm: str,
    scorer: Scorer,
    timeline: Timeline,
    *,
    chunk_rows: int,
    clock: Clock,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Time the scenario over its first rows, and keep none of their scores.

    Returns
    -------
    dict
        As of `run_offline`, without what was activated; ``timed_rows`` tells over how many of the
        ``rows`` time was taken.
    """
    stage = f"time {arm}"
    total = min(TIMED_ROWS, timeline.rows)
    elapsed = done = 0
    with torch.inference_mode():
        on_progress(stage, 0, total)
        for chunk, _, taken in _timed(arm, scorer, timeline, chunk_rows, clock):
            elapsed += taken
            done += chunk.size
            on_progress(stage, min(done, total), total)
            if done >= total:
                break
    seconds = elapsed / 1e9
    return {
        "rows": timeline.rows,
        "timed_rows": done,
        "seconds": seconds,
        "rows_per_second": done / seconds if seconds > 0 else None,
    }


def _timed(
    arm: str, scorer: Scorer, timeline: Timeline, chunk_rows: int, clock: Clock
) -> Iterator[tuple[Chunk, Scores, int]]:
    """Yield each chunk with its scores and what scoring took, in ns."""
    # The first forward picks kernels and grows the allocator's pools: it is not timed.
    for chunk in timeline.walk(scorer, timeline.lanes, chunk_rows):
        with suppress(Exception):  # what fails here fails again below, and is told there
            scorer.score(chunk.inputs, chunk.state)
        break
    for chunk in timeline.walk(scorer, timeline.lanes, chunk_rows):
        begin = clock()
        try:
            scores = scorer.score(chunk.inputs, chunk.state)
        except Exception as error:
            raise scoring_failed(arm, scorer, timeline, chunk, error) from error
        yield chunk, scores, clock() - begin
