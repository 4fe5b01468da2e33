"""The one counting pass over an ordered log: what scaling, vocabularies and checks rest on."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.errors import LogError
from sma_pilot.logs.blocks import Block
from sma_pilot.logs.columns import Columns
from sma_pilot.logs.events import EventIndex
from sma_pilot.logs.labels import EVENT, UNKNOWN
from sma_pilot.logs.scaling import Moments
from sma_pilot.logs.slices import OUTSIDE, SLICES
from sma_pilot.logs.units import UnitClasses

MAX_VOCABULARY = 1024
MAX_WORDS = 100_000
"""Distinct values in training above which a channel is no category, but a name of its row."""
UNKNOWN_VALUE = "<unknown>"
"""Value 0 of every vocabulary: missing, unseen in training, or too rare to be kept."""


@dataclass
class SliceCounts:
    """Rows of one slice, by what they are."""

    rows: int = 0
    sequences: int = 0
    labelled: int = 0
    event_rows: int = 0
    events: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts for provenance."""
        return dict(vars(self))


class Tally:
    """Counts, moments, vocabularies and events of a log, block by block.

    Parameters
    ----------
    entities : int
        Entities of the log.
    columns : Columns
        Its channels.
    window : timedelta, optional
        Of units that have a class; see `UnitClasses`.
    """

    def __init__(self, entities: int, columns: Columns, window: timedelta | None = None) -> None:
        numeric = len(columns.numeric)
        self._columns = columns
        self.slices = [SliceCounts() for _ in SLICES]
        self.outside = 0
        self.gaps = 0
        self.unusable = np.zeros(numeric, np.int64)
        self.train_moments = [Moments(numeric) for _ in range(entities)]
        self.slice_moments = [Moments(numeric) for _ in SLICES]
        self.words: list[Counter[str]] = [Counter() for _ in columns.categorical]
        self.events = EventIndex()
        self.units = UnitClasses(window) if columns.by_class else None
        """None for a log whose labels are events."""

    def add(self, block: Block) -> None:
        """Add the next block in order.

        Raises
        ------
        LogError
            When a categorical channel has more than `MAX_WORDS` values.
        """
        if self.units is None:
            self.events.add(block)
        else:
            self.units.add(block)
        self.unusable += block.unusable
        self.outside += int((block.slices == OUTSIDE).sum())
        self.gaps += int((block.gaps & (block.slices < OUTSIDE)).sum())
        for number, counts in enumerate(self.slices):
            mine = block.slices == number
            if not mine.any():
                continue
            counts.rows += int(mine.sum())
            counts.sequences += int((mine & block.starts).sum())
            counts.labelled += int((block.label[mine] != UNKNOWN).sum())
            if self.units is None:
                counts.event_rows += int((block.label[mine] >= EVENT).sum())
                counts.events = self.events.events[number]
            moments = Moments(len(self.unusable))
            moments.add(block.numeric[mine])
            self.slice_moments[number].merge(moments)
            if number == 0:
                self.train_moments[block.entity].merge(moments)
                self._count_words(block, mine)

    def _count_words(self, block: Block, mine: NDArray[np.bool_]) -> None:
        for name, channel, words in zip(
            self._columns.categorical, self.words, block.categorical, strict=True
        ):
            values = words.filter(pl.Series(mine)).drop_nulls().value_counts()
            channel.update(dict(values.iter_rows()))
            if len(channel) > MAX_WORDS:
                raise LogError(
                    f"log.categorical: column {name!r} has more than {MAX_WORDS:,} distinct "
                    "values, so it names rows rather than kinds; leave it out"
                )

    def finish(self) -> None:
        """Close what the last block left open."""
        self.events.finish()

    def vocabularies(self) -> list[tuple[str, ...]]:
        """Return each categorical channel's values: the unknown one, then training's, sorted."""
        kept = [
            sorted(words.items(), key=lambda item: (-item[1], item[0]))[: MAX_VOCABULARY - 1]
            for words in self.words
        ]
        return [
            (UNKNOWN_VALUE, *sorted(word for word, _ in words if word != UNKNOWN_VALUE))
            for words in kept
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for provenance."""
        return {
            "slices": {
                name: counts.to_dict() for name, counts in zip(SLICES, self.slices, strict=True)
            },
            "rows_after_judged_until": self.outside,
            "gaps": self.gaps,
            "values_not_finite": int(self.unusable.sum()),
        }
