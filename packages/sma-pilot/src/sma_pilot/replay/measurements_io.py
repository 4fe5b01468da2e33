"""Read a finished replay back, column by column, for the judge."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sma_pilot.errors import RunError
from sma_pilot.judge.guard_record import GuardRecord, GuardTally
from sma_pilot.judge.load_sample import LoadSample
from sma_pilot.judge.measurements import (
    ARMS,
    MULTI_STREAM,
    SERVER,
    SLICES,
    ArmScores,
    LatencySample,
    Leg,
    Measurements,
)
from sma_pilot.logs.slices import iso
from sma_pilot.replay.card import ReplayCard


def load_measurements(folder: Path) -> Measurements:
    """Read what `replay` left in `folder`.

    Memory holds the scores alone, 20 bytes a row and arm. Routing decisions stay on disk.

    Raises
    ------
    RunError
        The replay is not finished or its files are damaged.
    """
    card = ReplayCard.load(folder / "replay.json")
    # In one order for every reader, and not in that of the replay, which is drawn.
    replayed = {name.split("/")[0] for name in card.order}
    arms = [arm for arm in ARMS if arm in replayed]
    try:
        scores = {
            slice_name: {arm: read_scores(folder, arm, slice_name) for arm in arms}
            for slice_name in SLICES
        }
        latency = {arm: _latency(folder, arm) for arm in arms}
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


def _parts(folder: Path, arm: str) -> pl.LazyFrame:
    # The number is matched too: "incumbent" must not read the parts of "incumbent_again".
    parts = sorted(folder.glob(f"part-{arm}-[0-9]*.parquet"))
    if not parts:
        raise RunError(f"{folder}: no measurements of arm {arm!r}; delete the folder and replay")
    return pl.scan_parquet(parts)


def read_scores(folder: Path, arm: str, slice_name: str) -> ArmScores:
    """Read one arm's scores of one slice from a replay folder, finished or not."""
    frame = (
        _parts(folder / "scores", arm)
        .filter(pl.col("slice") == slice_name)
        .select(pl.col("entity").to_physical().cast(pl.Int32), "time", "label", "score")
        .collect()
    )
    return ArmScores(**{name: frame[name].to_numpy() for name in frame.columns})


def _latency(folder: Path, arm: str) -> LatencySample:
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
