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
from sma_pilot.logs.vocabulary import Templates, Vocabulary, Words
from sma_pilot.plan import TextSource

MAX_WORDS = 100_000
"""Distinct values in training above which a channel is no category, but a name of its row."""
MAX_LINES = 300_000
"""Distinct masked lines in training above which its masks leave too much in a text."""


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
    text : TextSource, optional
        How templates are mined from the column of free text.
    """

    def __init__(
        self,
        entities: int,
        columns: Columns,
        window: timedelta | None = None,
        text: TextSource | None = None,
    ) -> None:
        numeric = len(columns.numeric)
        self._columns = columns
        self.slices = [SliceCounts() for _ in SLICES]
        self.outside = 0
        self.gaps = 0
        self.unusable = np.zeros(numeric, np.int64)
        self.train_moments = [Moments(numeric) for _ in range(entities)]
        self.slice_moments = [Moments(numeric) for _ in SLICES]
        self._text = text
        self.words: list[Counter[str]] = [Counter() for _ in columns.categorical]
        self.events = EventIndex()
        self.units = UnitClasses(window) if columns.by_class else None
        """None for a log whose labels are events."""

    def add(self, block: Block) -> None:
        """Add the next block in order.

        Raises
        ------
        LogError
            When a categorical channel has more than `MAX_WORDS` values, or a text more than
            `MAX_LINES` lines.
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
            known = words.filter(pl.Series(mine)).drop_nulls().alias("word").to_frame()
            # In the order of the log, in which templates are mined.
            values = known.group_by("word", maintain_order=True).len()
            channel.update(dict(values.iter_rows()))
            if name == self._columns.text and len(channel) > MAX_LINES:
                raise LogError(
                    f"log.text: the train slice has more than {MAX_LINES:,} distinct lines when "
                    f"masked, such as {next(reversed(channel))[:200]!r}; mask what differs from "
                    "line to line with log.text.masks"
                )
            if name != self._columns.text and len(channel) > MAX_WORDS:
                raise LogError(
                    f"log.categorical: column {name!r} has more than {MAX_WORDS:,} distinct "
                    "values, so it names rows rather than kinds; leave it out"
                )

    def finish(self) -> None:
        """Close what the last block left open."""
        self.events.finish()

    def vocabularies(self) -> list[Vocabulary]:
        """Return the values of each categorical channel, from training alone."""
        return [
            Words(words)
            if self._text is None or name != self._columns.text
            else Templates(words, self._text)
            for name, words in zip(self._columns.categorical, self.words, strict=True)
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
