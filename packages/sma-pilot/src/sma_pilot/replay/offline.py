"""The offline scenario: all rows as fast as they go, for scores and for throughput."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sma_pilot.arms.base import Scorer
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock
from sma_pilot.replay.recorder import Recorder
from sma_pilot.replay.timeline import Lane, Timeline


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
    lanes = [Lane(stretch, stretch.rows) for stretch in timeline.stretches]
    stage = f"replay {arm}"
    elapsed = done = 0
    with ExitStack() as open_files, torch.inference_mode():
        recorder = Recorder(arm, scorer.submodules, timeline, folder, routing, open_files)
        # The first forward picks kernels and grows the allocator's pools: it is not timed.
        for chunk in timeline.walk(scorer, lanes, chunk_rows):
            scorer.score(chunk.inputs, chunk.state)
            break
        for chunk in timeline.walk(scorer, lanes, chunk_rows):
            on_progress(stage, done, timeline.rows)
            begin = clock()
            scores = scorer.score(chunk.inputs, chunk.state)
            elapsed += clock() - begin
            recorder.add(chunk, scores)
            done += len(chunk.lanes) * (chunk.end - chunk.begin)
    on_progress(stage, done, timeline.rows)
    seconds = elapsed / 1e9
    return {
        "rows": done,
        "seconds": seconds,
        "rows_per_second": done / seconds if seconds > 0 else None,
        **recorder.activation(),
    }
