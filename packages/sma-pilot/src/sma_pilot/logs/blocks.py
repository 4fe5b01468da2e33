"""Pieces of a staged log as arrays: cut into slices and sequences, unusable values removed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.logs.slices import OUTSIDE, Borders, SequenceCutter
from sma_pilot.logs.staging import StagedLog
from sma_pilot.logs.vocabulary import Vocabulary

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one entity (T rows, C numeric channels), as a piece of the log has them.

    Parameters
    ----------
    entity : int
        Index into the staged log's entities.
    time : int64 [T]
        ns since 1970-01-01 UTC, rising.
    label : int32 [T]
        -1 unknown, 0 normal, 1 and above an event's kind.
    numeric : float64 [T, C]
        Raw values, NaN where missing.
    categorical : tuple of polars.Series
        Texts of each categorical channel, null where missing.
    slices : int64 [T]
        Slice number, `OUTSIDE` for rows that belong to none.
    starts, gaps : bool [T]
        Whether the row starts a sequence; whether a long silence lies before it.
    unusable : int64 [C]
        Values that were infinite or beyond the range of float32, and are missing now.
    """

    entity: int
    time: NDArray[np.int64]
    label: NDArray[np.int32]
    numeric: NDArray[np.float64]
    categorical: tuple[pl.Series, ...]
    slices: NDArray[np.int64]
    starts: NDArray[np.bool_]
    gaps: NDArray[np.bool_]
    unusable: NDArray[np.int64]

    def coded(self, vocabularies: Sequence[Vocabulary]) -> NDArray[np.int32] | None:
        """Return the categorical channels as places in their vocabularies, int32 [T, K].

        None where there is no such channel.
        """
        if not vocabularies:
            return None
        columns = [
            vocabulary.encode(words)
            for words, vocabulary in zip(self.categorical, vocabularies, strict=True)
        ]
        return np.stack(columns, axis=1)


def blocks(staged: StagedLog, borders: Borders, max_gap: int) -> Iterator[Block]:
    """Read a staged log as blocks, entity after entity, in time order.

    Parameters
    ----------
    staged : StagedLog
        The log, in order.
    borders : Borders
        Where its slices lie.
    max_gap : int
        Longest silence within a sequence, ns.
    """
    cutter = SequenceCutter(borders, max_gap)
    names = staged.reader.numeric_names
    for piece in staged.pieces():
        rows = piece.rows
        time = rows["time"].to_numpy()
        slices, starts, gaps = cutter.cut(piece.entity, time)
        # Of no column at all polars would make no row either.
        numeric = rows.select(names).to_numpy(writable=True) if names else np.empty((len(time), 0))
        unusable = ~np.isnan(numeric) & ~(np.abs(numeric) <= _LARGEST)
        numeric[unusable] = np.nan
        yield Block(
            entity=piece.entity,
            time=time,
            label=rows["label"].to_numpy(),
            numeric=numeric,
            categorical=tuple(rows[name] for name in staged.reader.categorical_names),
            slices=slices,
            starts=starts,
            gaps=gaps,
            unusable=unusable[slices < OUTSIDE].sum(axis=0),
        )
