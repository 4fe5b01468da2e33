"""The shadow's scenario: the candidate beside the incumbent, at the pace at which events came.

Each event is due when the log says, divided by the speed. It goes to the incumbent, which serves
it, and then to the candidate, whose answer nobody gets. An event that is due while the two are at
an earlier one waits, so a response time counts from when the event was due. What a machine needs
for both at once is what a plant pays while a candidate is on trial.
"""

from typing import Any

import numpy as np
import polars as pl
import torch

from sma_pilot.replay.clock import garbage_collector_off
from sma_pilot.replay.further import LegContext
from sma_pilot.replay.parts import write_parquet
from sma_pilot.replay.single_stream import events_of, states_before
from sma_pilot.replay.stream import choose_stream


def run_paced(leg: LegContext) -> dict[str, Any]:
    """Send consecutive events to both arms, each when it is due, at the shadow stage's pace.

    ``paced/`` in the replay folder gets every response time.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.
    """
    (stage,) = leg.plan.stages
    settings, timeline, clock = leg.plan.replay, leg.timeline, leg.clock
    warmup = settings.warmup_events
    stream = choose_stream(timeline, warmup + stage.paced_events, f"{leg.plan.seed}/paced")
    count = len(stream.time)
    due = ((stream.time - stream.time[:1]) / stage.speed).astype(np.int64)
    served, shadowed = np.zeros(count, np.int64), np.zeros(count, np.int64)
    with torch.inference_mode():
        arms = [
            (arm.step, states_before(arm, timeline, stream, settings.chunk_rows))
            for arm in (leg.open_scorer("incumbent"), leg.scorer)
        ]
        (serve, served_states), (shadow, shadow_states) = arms
        events = events_of(timeline, stream)
        with garbage_collector_off():
            start = clock()
            for place, (event, lane) in enumerate(zip(events, stream.lane, strict=True)):
                if place % 64 == 0:  # often enough to be watched, seldom enough to cost nothing
                    leg.on_progress("replay shadow", place, count)
                leg.wait(clock, start + int(due[place]))
                serve(event, served_states[lane])
                served[place] = clock() - start - due[place]
                shadow(event, shadow_states[lane])
                shadowed[place] = clock() - start - due[place]
            seconds = (clock() - start) / 1e9
    leg.on_progress("replay shadow", count, count)
    entity = np.array([lane.stretch.entity for lane in stream.past], dtype=np.uint32)
    frame = pl.DataFrame(
        {
            "entity": pl.Series(timeline.entities, dtype=pl.Enum(timeline.entities)).gather(
                entity[stream.lane]
            ),
            "time": stream.time,
            "due_ns": due,
            "incumbent_ns": served,
            "candidate_ns": shadowed,
        }
    )[warmup:]
    write_parquet(frame, leg.folder / "paced" / "part-candidate-00000.parquet")
    late = None
    if stage.deadline is not None and frame.height:
        limit = stage.deadline.total_seconds() * 1e9
        late = float((frame["candidate_ns"].to_numpy() > limit).mean())
    return {
        "rows": frame.height,
        "seconds": seconds,
        "rows_per_second": None,  # the log's pace, no throughput of the arm
        "activation_rate": None,
        "late_share": late,
        "response_p95_ms": _percentile_ms(frame["candidate_ns"]),
        "served_p95_ms": _percentile_ms(frame["incumbent_ns"]),
    }


def _percentile_ms(response: pl.Series) -> float | None:
    """95th percentile by nearest rank, in ms; None of too few for one."""
    value = response.quantile(0.95, "higher") if response.len() >= 90 else None
    return None if value is None else value / 1e6
