"""Columns that a log has recorded beside its channels, for the rows of a prepared data set.

The files go through the same reading, sorting and choice among duplicates as the log itself, and
each of their rows is found again by entity and time. What has no row there stays missing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from sma_core.dataset import PreparedDataset, Split
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.staging import stage
from sma_pilot.plan import LogSource
from sma_pilot.progress import OnProgress

_READ_ROWS = 65_536


def recorded_columns(
    log: LogSource,
    columns: Sequence[str],
    data: Path,
    dataset: PreparedDataset,
    splits: Sequence[str],
    on_progress: OnProgress,
) -> dict[str, NDArray[np.float64]]:
    """Read numeric columns of a log for the rows of some splits.

    Parameters
    ----------
    log : LogSource
        The files, their columns of time and entity, and which of two duplicates stands.
    columns : sequence of str
        Names of C columns.
    data : Path
        Where relative paths start.
    dataset : PreparedDataset
        Made from a log of the same entities and times.
    splits : sequence of str
    on_progress : OnProgress

    Returns
    -------
    dict of str to float64 [rows, C]
        By split; NaN where there is no such row or its cell is empty.

    Raises
    ------
    LogError
        The files cannot be read as that, or a cell holds no number.
    """
    source = log.model_copy(
        update={"numeric": tuple(columns), "categorical": (), "label": None, "scaling": "global"}
    )
    reader = LogReader(source, data)
    order = [reader.columns.numeric.index(name) for name in columns]
    frames = []
    with stage(source, reader, None, on_progress) as staged:
        for piece in staged.pieces():
            values = [pl.col(f"n{place}").alias(f"v{i}") for i, place in enumerate(order)]
            entity = pl.lit(staged.entities[piece.entity]).alias("entity")
            frames.append(piece.rows.select(entity, "time", *values))
    recorded = pl.concat(frames)
    values = [f"v{i}" for i in range(len(columns))]
    return {
        name: _keys(dataset.split(name), dataset.card.entities)
        .join(recorded, on=["entity", "time"], how="left", maintain_order="left", validate="m:1")
        .select(pl.col(values).cast(pl.Float64).fill_null(np.nan))
        .to_numpy()
        for name in splits
    }


def _keys(split: Split, entities: Sequence[str]) -> pl.DataFrame:
    """Return entity and time of each row of a split, in its order."""
    owner = np.zeros(split.rows, dtype=np.int64)
    for entity, first, last in split.sequences:
        owner[first:last] = entity
    starts = range(0, split.rows, _READ_ROWS)
    time = [split.read(start, min(start + _READ_ROWS, split.rows)).time for start in starts]
    names = pl.Series(entities, dtype=pl.String)
    return pl.DataFrame({"entity": names.gather(owner), "time": torch.cat(time).numpy()})
