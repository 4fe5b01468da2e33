"""The multi-stream scenario: the next rows of many entities as one batch, as a gateway sends them.

A batch is sent when the one before it is answered. The scores are those of single rows; the time
of a batch is that of its busiest sequence, which matters for an arm that skips steps: one busy
entity can cancel what all others save.
"""

from typing import Any

import numpy as np
import polars as pl
import torch

from sma_pilot.replay.clock import garbage_collector_off
from sma_pilot.replay.further import LegContext
from sma_pilot.replay.meters import release_freed_memory
from sma_pilot.replay.parts import write_parquet
from sma_pilot.replay.single_stream import states_before
from sma_pilot.replay.stream import Stream
from sma_pilot.replay.timeline import Lane, Stretch, stack


def run_multi_stream(leg: LegContext) -> dict[str, Any]:
    """Send batches of as many entities' next rows as the plan says, or as there are.

    Of each entity the stretch with the most judged rows is taken, and of all entities those that
    have the most, so that a batch stays as wide as it began for as long as possible.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON; ``multi_stream/`` gets every time.
    """
    settings = leg.plan.replay
    lanes, rounds = _choose(leg)
    service: list[int] = []
    if lanes:
        queries = [
            stack(
                [
                    leg.timeline.read(lane.stretch, lane.stop + t, lane.stop + t + 1)
                    for lane in lanes
                ]
            )
            for t in range(rounds)
        ]
        nothing = np.zeros(0, dtype=np.int64)
        with torch.inference_mode():
            past = Stream(lanes, nothing, nothing)
            state = leg.scorer.start(len(lanes))
            for i, own in enumerate(
                states_before(leg.scorer, leg.timeline, past, settings.chunk_rows)
            ):
                state.put(torch.tensor([i]), own)
            score, clock = leg.scorer.score, leg.clock
            release_freed_memory()
            with garbage_collector_off():
                for query in queries:
                    begin = clock()
                    score(query, state)
                    service.append(clock() - begin)
            leg.sample_memory()
    service = service[_warmup(settings.warmup_events, len(lanes), rounds) :]
    write_parquet(
        pl.DataFrame({"service_ns": pl.Series(service, dtype=pl.Int64)}).with_row_index("query"),
        leg.folder / "multi_stream" / f"part-{leg.arm}-00000.parquet",
    )
    seconds, rows = sum(service) / 1e9, len(service) * len(lanes)
    return {
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds if seconds > 0 else None,
        "activation_rate": None,
        "events_per_query": len(lanes),
    }


def _warmup(events: int, width: int, rounds: int) -> int:
    """Return how many batches are sent and not recorded: as many events as in single stream."""
    return min(-(-events // max(width, 1)), rounds // 2)


def _choose(leg: LegContext) -> tuple[tuple[Lane, ...], int]:
    """Return the lanes up to their first judged row, and how many batches they have in common."""
    settings = leg.plan.replay
    longest: dict[int, Stretch] = {}
    for stretch in leg.timeline.stretches:
        known = longest.get(stretch.entity)
        if _judged(stretch) > (0 if known is None else _judged(known)):
            longest[stretch.entity] = stretch
    ranked = sorted(longest.values(), key=lambda own: (-_judged(own), own.entity))
    chosen = ranked[: settings.multi_stream_entities]
    if len(chosen) < 2:  # a batch of one is the single-stream scenario
        return (), 0
    wanted = settings.multi_stream_batches
    wanted += -(-settings.warmup_events // len(chosen))
    rounds = min(wanted, *map(_judged, chosen))
    return tuple(Lane(own, own.rows - _judged(own)) for own in chosen), rounds


def _judged(stretch: Stretch) -> int:
    return stretch.rows - stretch.first_judged
