"""Read a finished replay back, column by column, for the judge."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl

from sma_pilot.errors import RunError
from sma_pilot.judge.measurements import ARMS, SLICES, ArmScores, LatencySample, Leg, Measurements
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
