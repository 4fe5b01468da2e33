"""The guarded leg: the candidate under its fail-safe, and every fallback with entity and time.

All rows go through it in bulk, since what makes it fall back lies in the rows; the limits are
plain to see on the validation rows, where nothing is wrong yet. Then a run of consecutive judged
events goes through one by one: lateness is of single events, and so is what the guard itself takes.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch

from sma_core.model import Inputs
from sma_pilot.guard import DriftReference, Fallback, GuardedScorer, GuardState, Tally
from sma_pilot.guard.fallback import REASONS
from sma_pilot.replay.clock import garbage_collector_off
from sma_pilot.replay.further import LegContext
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.single_stream import events_of, states_before
from sma_pilot.replay.stream import choose_stream
from sma_pilot.replay.timeline import Chunk

VALIDATION, JUDGED, STREAM = "validation", "judged", "stream"
LEAD = "lead"
"""Rows that lead to the judged ones: what the guard does there counts for nothing."""
_ROWS_AT_ONCE = 10_000
_COLUMNS = {
    "part": pl.Enum([VALIDATION, JUDGED, STREAM]),
    "entity": pl.String(),
    "time": pl.Int64(),
    "reason": pl.Enum(REASONS),
    "model": pl.Enum(["candidate", "incumbent"]),
    "to": pl.Enum(["incumbent", "person"]),
    "value": pl.Float64(),
    "limit": pl.Float64(),
    "detail": pl.String(),
    "renewed": pl.Boolean(),
}


def run_guarded(leg: LegContext) -> dict[str, Any]:
    """Send every row, and then a stream of single events, through the guarded candidate.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON: a tally of each part, the first fallbacks of judged
        rows, and the guard's own time in the stream.
    """
    plan, timeline = leg.plan, leg.timeline
    assert plan.guard is not None  # noqa: S101  (else there is no such leg)
    reference = None
    if plan.guard.drift_limit is not None:
        reference = DriftReference.of(timeline.train, leg.on_progress)
    incumbent = leg.open_scorer("incumbent") if plan.guard.fallback == "incumbent" else None
    scorer = GuardedScorer(leg.scorer, incumbent, plan.guard, reference, leg.clock)
    tallies = {VALIDATION: Tally(), JUDGED: Tally(), STREAM: Tally()}
    with torch.inference_mode(), PartWriter(leg.folder / "guard", leg.arm) as parts:
        record = _Record(timeline.entities, parts)
        _in_bulk(leg, scorer, tallies, record)
        own_ns = _one_by_one(leg, scorer, tallies[STREAM], record)
        record.flush()
    return {
        "rows": tallies[VALIDATION].rows + tallies[JUDGED].rows,
        "seconds": None,
        "rows_per_second": None,
        "activation_rate": None,
        "tally": {name: tally.to_dict() for name, tally in tallies.items()},
        "examples": record.examples,
        "guard_ns_per_event": own_ns,
    }


def _in_bulk(
    leg: LegContext, scorer: GuardedScorer, tallies: dict[str, Tally], record: "_Record"
) -> None:
    done = 0
    for chunk in leg.timeline.walk(scorer, leg.timeline.lanes, leg.plan.replay.chunk_rows):
        leg.on_progress("replay guarded", done, leg.timeline.rows)
        for i, part, rows in _by_slice(chunk):
            scorer.tally = Tally() if part == LEAD else tallies[part]
            numeric, categorical = chunk.inputs.numeric, chunk.inputs.categorical
            own = Inputs(
                numeric=None if numeric is None else numeric[i : i + 1, rows],
                categorical=None if categorical is None else categorical[i : i + 1, rows],
            )
            scorer.score(own, GuardState([chunk.state.lanes[i]]))
            entity = chunk.lanes[i].stretch.entity
            time = chunk.rows[i].time[rows].tolist()
            for fallback in scorer.take_fallbacks():
                if part != LEAD:
                    record.add(part, entity, time[fallback.row], fallback)
        done += chunk.size
    leg.on_progress("replay guarded", done, leg.timeline.rows)


def _by_slice(chunk: Chunk) -> list[tuple[int, str, slice]]:
    """Cut each lane of a chunk where its judged rows begin."""
    parts = []
    for i, lane in enumerate(chunk.lanes):
        steps = chunk.end - chunk.begin
        border = min(max(lane.stretch.border - chunk.begin, 0), steps)
        parts += [(i, VALIDATION, slice(0, border))] if border else []
        judged = min(max(lane.stretch.first_judged - chunk.begin, 0), steps)
        parts += [(i, LEAD, slice(border, judged))] if border < judged else []
        parts += [(i, JUDGED, slice(judged, steps))] if judged < steps else []
    return parts


def _one_by_one(
    leg: LegContext, scorer: GuardedScorer, tally: Tally, record: "_Record"
) -> float | None:
    """Return what the guard takes of its own, in ns an event: all time but the models'."""
    settings, timeline = leg.plan.replay, leg.timeline
    size = settings.warmup_events + settings.single_stream_events
    stream = choose_stream(timeline, size, f"{leg.plan.seed}/0")
    scorer.tally = Tally()
    states = states_before(scorer, timeline, stream, settings.chunk_rows)
    scorer.take_fallbacks()
    events = events_of(timeline, stream)
    elapsed = 0
    with garbage_collector_off():
        for place, (event, lane) in enumerate(zip(events, stream.lane.tolist(), strict=True)):
            if place == settings.warmup_events:
                scorer.tally, elapsed = tally, 0
            begin = leg.clock()
            scorer.step(event, states[lane])
            elapsed += leg.clock() - begin
            entity, time = stream.past[lane].stretch.entity, int(stream.time[place])
            for fallback in scorer.take_fallbacks():
                if place >= settings.warmup_events:
                    record.add(STREAM, entity, time, fallback)
    leg.sample_memory()
    models = tally.candidate_ns + tally.incumbent_ns + tally.priming_ns
    return (elapsed - models) / tally.rows if tally.rows else None


class _Record:
    """Writes fallbacks as they come, and keeps the first of each reason on judged rows."""

    def __init__(self, entities: Sequence[str], parts: PartWriter) -> None:
        self._entities = entities
        self._parts = parts
        self._rows: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []

    def add(self, part: str, entity: int, time: int, fallback: Fallback) -> None:
        """Take a fallback of an entity (index) at a time, ns."""
        row = {"part": part, "entity": self._entities[entity], "time": time, **vars(fallback)}
        self._rows.append({name: row[name] for name in _COLUMNS})
        known = {example["reason"] for example in self.examples}
        if part != VALIDATION and not fallback.renewed and fallback.reason not in known:
            self.examples.append({**self._rows[-1], "text": fallback.text})
        if len(self._rows) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Hand the fallbacks over to be written."""
        if self._rows:
            kinds = {**_COLUMNS, "entity": pl.Enum(self._entities)}
            self._parts.add(pl.DataFrame(self._rows, schema=kinds))
        self._rows = []
