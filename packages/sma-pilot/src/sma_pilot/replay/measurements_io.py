"""Read a finished replay back, column by column, for the judge."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sma_pilot.errors import RunError
from sma_pilot.judge.guard_record import GuardRecord, GuardTally
from sma_pilot.judge.load_sample import LoadSample
from sma_pilot.judge.measurements import (
    ARMS,
    CLASS_COLUMNS,
    JUDGED,
    MULTI_STREAM,
    SERVER,
    SLICES,
    VALIDATION,
    ArmScores,
    LatencySample,
    Leg,
    Measurements,
)
from sma_pilot.logs.slices import iso
from sma_pilot.replay.card import ReplayCard


def load_measurements(*folders: Path) -> Measurements:
    """Read what `replay` left in `folders`: one, or those of the looks of a stage in order.

    Looks add judged rows and service times one after the other. The validation rows are the same
    for all of them.

    Memory holds the scores alone, 20 bytes a row and arm. Routing decisions stay on disk.

    Raises
    ------
    RunError
        The replay is not finished or its files are damaged.
    """
    looks = [_load(folder) for folder in folders]
    return looks[0] if len(looks) == 1 else _join(looks)


def _load(folder: Path) -> Measurements:
    card = ReplayCard.load(folder / "replay.json")
    # In one order for every reader, and not in that of the replay, which is drawn.
    replayed = {name.split("/")[0] for name in card.order}
    arms = [arm for arm in ARMS if arm in replayed]
    try:
        scores = {
            slice_name: {arm: read_scores(folder, arm, slice_name) for arm in arms}
            for slice_name in SLICES
        }
        latency = {arm: read_latency(folder, arm) for arm in arms}
        # Of an arm that is but recorded there may be none: that is no measurement.
        latency = {arm: own for arm, own in latency.items() if own.query.size}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{folder}: damaged ({error}); delete the folder and replay") from error
    known = {field.name for field in fields(Leg)}
    legs = {
        name: Leg(**{key: value for key, value in figures.items() if key in known})
        for name, figures in card.legs.items()
    }
    return Measurements(
        entities=tuple(card.dataset["entities"]),
        scores=scores,
        latency=latency,
        legs=legs,
        dataset=card.dataset,
        environment=card.environment,
        guard=_guard(card.legs.get("candidate/guarded")),
        load=_under_load(folder, card),
    )


def _under_load(folder: Path, card: ReplayCard) -> dict[str, LoadSample]:
    """Read the times of the scenarios beside offline and single stream."""
    samples = {}
    for name, figures in card.legs.items():
        arm, scenario = name.split("/")
        if scenario not in (MULTI_STREAM, SERVER):
            continue
        times = _parts(folder / scenario, arm).collect()
        samples[name] = LoadSample(
            events_per_query=figures["events_per_query"],
            service_ns=times["service_ns"].to_numpy(),
            **(
                {
                    "response_ns": times["response_ns"].to_numpy(),
                    "slip_ns": times["slip_ns"].to_numpy(),
                    "offered_rate": figures["offered_rate"],
                    "sustainable_rate": figures["sustainable_rate"],
                    "search_note": figures["search_note"],
                }
                if scenario == SERVER
                else {}
            ),
        )
    return samples


def _guard(figures: dict[str, Any] | None) -> GuardRecord | None:
    """Read what the guarded leg left; see `sma_pilot.replay.guarded`."""
    if figures is None:
        return None
    tallies = {
        part: GuardTally(
            rows=tally["rows"],
            fallbacks=tally["fallbacks"],
            fallback_rows=tally["fallback_rows"],
            looks=tally["looks"],
            priming_seconds=tally["priming_ns"] / 1e9,
        )
        for part, tally in figures["tally"].items()
    }
    own = figures["guard_ns_per_event"]
    return GuardRecord(
        **tallies,
        seconds_per_event=None if own is None else own / 1e9,
        examples=tuple(
            f"entity {example['entity']!r} at {iso(example['time'])}: {example['text']}"
            for example in figures["examples"]
        ),
    )


def _join(looks: list[Measurements]) -> Measurements:
    """Put the measurements of consecutive looks after one another."""
    last = looks[-1]
    arms = list(last.scores[JUDGED])
    judged = {arm: _concatenate([own.scores[JUDGED][arm] for own in looks]) for arm in arms}
    latency: dict[str, LatencySample] = {}
    timed = [arm for arm in last.latency if all(arm in own.latency for own in looks)]
    for arm in timed:
        passes = [own.latency[arm] for own in looks]
        begin = np.cumsum([0, *(own.pass_index.max(initial=-1) + 1 for own in passes[:-1])])
        moved = [
            replace(own, pass_index=own.pass_index + np.int32(first))
            for own, first in zip(passes, begin, strict=True)
        ]
        latency[arm] = _concatenate(moved)
    return replace(
        last,
        scores={VALIDATION: last.scores[VALIDATION], JUDGED: judged},
        latency=latency,
        legs={name: _over_looks([own.legs[name] for own in looks]) for name in last.legs},
        guard=_sum_of([own.guard for own in looks if own.guard is not None]),
    )


def _sum_of(records: list[GuardRecord]) -> GuardRecord | None:
    """Bring what the guard did at several looks together; validation rows are the same in all."""
    if not records:
        return None
    own = [record.seconds_per_event for record in records if record.seconds_per_event is not None]
    return replace(
        records[-1],
        judged=_add([record.judged for record in records]),
        stream=_add([record.stream for record in records]),
        seconds_per_event=max(own, default=None),
        examples=records[0].examples or records[-1].examples,
    )


def _add(tallies: list[GuardTally]) -> GuardTally:
    fallbacks: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for tally in tallies:
        fallbacks.update(tally.fallbacks)
        rows.update(tally.fallback_rows)
    return GuardTally(
        rows=sum(tally.rows for tally in tallies),
        fallbacks=fallbacks,
        fallback_rows=rows,
        looks=sum(tally.looks for tally in tallies),
        priming_seconds=sum(tally.priming_seconds for tally in tallies),
    )


def _concatenate(samples: list[Any]) -> Any:
    names = [own.name for own in fields(samples[0]) if getattr(samples[0], own.name) is not None]
    columns = {n: np.concatenate([getattr(own, n) for own in samples]) for n in names}
    return type(samples[0])(**columns)


def _over_looks(legs: list[Leg]) -> Leg:
    """Bring the figures of one leg at several looks together: sums, means by rows, and maxima."""
    rows = sum(leg.rows or 0 for leg in legs)

    def mean(values: list[float | None]) -> float | None:
        known = [(v, leg.rows or 0) for v, leg in zip(values, legs, strict=True) if v is not None]
        weight = sum(count for _, count in known)
        return sum(value * count for value, count in known) / weight if weight else None

    def largest(values: list[Any]) -> Any:
        return max((value for value in values if value is not None), default=None)

    # Memory is that of the look that took most over its own baseline.
    most = max(legs, key=lambda leg: (leg.peak_rss_bytes or 0) - (leg.baseline_rss_bytes or 0))
    seconds = sum(leg.seconds or 0.0 for leg in legs)
    measured = any(leg.rows_per_second is not None for leg in legs)
    timed = sum(leg.timed or 0 for leg in legs)
    joules = [leg.energy_joules for leg in legs if leg.energy_joules is not None]
    return replace(
        most,
        rows=rows,
        seconds=seconds,
        rows_per_second=timed / seconds if measured and seconds > 0 else None,
        energy_joules=sum(joules) if len(joules) == len(legs) else None,
        timed_rows=timed,
        peak_cuda_bytes=largest([leg.peak_cuda_bytes for leg in legs]),
        activation_rate=mean([leg.activation_rate for leg in legs]),
        score_difference=largest([leg.score_difference for leg in legs]),
        late_share=mean([leg.late_share for leg in legs]),
        response_p95_ms=largest([leg.response_p95_ms for leg in legs]),
        served_p95_ms=largest([leg.served_p95_ms for leg in legs]),
        submodule_rates={
            name: mean([leg.submodule_rates.get(name) for leg in legs]) or 0.0
            for name in legs[-1].submodule_rates
        },
    )


def _parts(folder: Path, arm: str) -> pl.LazyFrame:
    # The number is matched too: "incumbent" must not read the parts of "incumbent_again".
    parts = sorted(folder.glob(f"part-{arm}-[0-9]*.parquet"))
    if not parts:
        raise RunError(f"{folder}: no measurements of arm {arm!r}; delete the folder and replay")
    return pl.scan_parquet(parts)


def read_scores(folder: Path, arm: str, slice_name: str) -> ArmScores:
    """Read one arm's scores of one slice from a replay folder, finished or not."""
    parts = _parts(folder / "scores", arm)
    told = [name for name in CLASS_COLUMNS if name in parts.collect_schema()]
    frame = (
        parts.filter(pl.col("slice") == slice_name)
        .select(pl.col("entity").to_physical().cast(pl.Int32), "time", "label", "score", *told)
        .collect()
    )
    return ArmScores(**{name: frame[name].to_numpy() for name in frame.columns})


def read_latency(folder: Path, arm: str) -> LatencySample:
    """Read one arm's single-stream service times from a replay folder, finished or not."""
    frame = (
        _parts(folder / "latency", arm)
        .select(
            "service_ns",
            pl.col("pass").alias("pass_index"),
            "query",
            pl.col("active_share").fill_null(np.nan),
        )
        .collect()
    )
    return LatencySample(**{name: frame[name].to_numpy() for name in frame.columns})
