"""The rows to replay, as stretches: what one state runs through without a break."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from sma_core.dataset import PreparedDataset, Rows, SequenceRef, Split
from sma_core.model import Inputs
from sma_pilot.arms.base import Scorer

_LANES = 8
_HISTOGRAM_BINS = 65_536
_READ_ROWS = 65_536


@dataclass(frozen=True)
class Window:
    """A part of the judged slice: the rows that one look of a stage adds.

    Parameters
    ----------
    since_ns, until_ns : int
        From the first time on, up to the second one (exclusive).
    entities : frozenset of int or None
        Indices into the card's entities; None for all.
    """

    since_ns: int
    until_ns: int
    entities: frozenset[int] | None = None


@dataclass(frozen=True)
class Stretch:
    """Rows of one entity without a long silence: those of validation first, then the judged ones.

    Between the two there may be rows that lead to where judging begins: they bring the state there
    and count for nothing.

    Parameters
    ----------
    entity : int
        Index into the card's entities.
    validation, judged : tuple of int
        First row and end (exclusive) within the split; equal where it has no row there.
    judged_from_ns, judged_until_ns : int or None
        Time of the first and of the last judged row; None without one.
    lead : int
        How many of the rows in `judged` only lead to the first judged one.
    """

    entity: int
    validation: tuple[int, int] = (0, 0)
    judged: tuple[int, int] = (0, 0)
    judged_from_ns: int | None = None
    judged_until_ns: int | None = None
    lead: int = 0

    @property
    def border(self) -> int:
        """Number of validation rows: the offset of the first row after them."""
        return self.validation[1] - self.validation[0]

    @property
    def first_judged(self) -> int:
        """Offset of the first judged row."""
        return self.border + self.lead

    @property
    def rows(self) -> int:
        """Number of rows in all."""
        return self.border + self.judged[1] - self.judged[0]


@dataclass(frozen=True)
class Lane:
    """The first `stop` rows of a stretch."""

    stretch: Stretch
    stop: int


@dataclass(frozen=True)
class Chunk:
    """Rows `begin` to `end` of several stretches at once, to be scored with `state`."""

    lanes: tuple[Lane, ...]
    begin: int
    end: int
    rows: tuple[Rows, ...]
    inputs: Inputs
    state: Any

    @property
    def size(self) -> int:
        """Number of rows, those of all lanes together."""
        return len(self.lanes) * (self.end - self.begin)


class Timeline:
    """The validation and the judged slice of a prepared data set, entity by entity in time order.

    An entity whose judged rows follow its validation rows without a silence longer than `max_gap`
    keeps its state across the border, since nothing happened there to the machine: the border is
    ours. A longer silence starts a new stretch, as it starts a new sequence within a slice.

    Parameters
    ----------
    dataset : PreparedDataset
        With splits ``validation`` and ``judged``.
    max_gap_ns : int
        Longest silence that a state survives.
    window : Window, optional
        The rows to judge; the whole judged slice by default. Rows of it before the window are read
        to bring the state there, rows after it are not.
    """

    def __init__(
        self, dataset: PreparedDataset, max_gap_ns: int, window: Window | None = None
    ) -> None:
        self.card = dataset.card
        self.entities = dataset.card.entities or ("all",)
        self._validation = dataset.split("validation")
        self._judged = dataset.split("judged")
        self._dataset = dataset
        stretches = self._join(max_gap_ns)
        if window is not None:
            stretches = [part for own in stretches if (part := self._within(own, window))]
        self.stretches = stretches
        self.rows = sum(stretch.rows for stretch in stretches)
        self.judged_rows = sum(stretch.rows - stretch.first_judged for stretch in stretches)

    def _within(self, stretch: Stretch, window: Window) -> Stretch | None:
        """Cut a stretch to a window; None when nothing of it is left."""
        start, stop = stretch.judged
        rows = range(start, stop)
        at = partial(_time, self._judged)
        lead = bisect_left(rows, window.since_ns, key=at)
        end = bisect_left(rows, window.until_ns, key=at)
        if lead >= end or (window.entities is not None and stretch.entity not in window.entities):
            alone = Stretch(stretch.entity, validation=stretch.validation)
            return alone if alone.rows else None
        return replace(
            stretch,
            judged=(start, start + end),
            judged_from_ns=at(start + lead),
            judged_until_ns=at(start + end - 1),
            lead=lead,
        )

    @property
    def lanes(self) -> list[Lane]:
        """All rows of each stretch."""
        return [Lane(stretch, stretch.rows) for stretch in self.stretches]

    @property
    def train(self) -> Split:
        """The slice that models learned from; none of its rows is replayed."""
        return self._dataset.split("train")

    def _join(self, max_gap_ns: int) -> list[Stretch]:
        # Validation ends before judging begins, so only an entity's last sequence of the one and
        # its first of the other can touch.
        last: dict[int, tuple[int, SequenceRef]] = {}
        for ref in self._validation.sequences:
            until = _time(self._validation, ref.stop - 1)
            if ref.entity not in last or until > last[ref.entity][0]:
                last[ref.entity] = until, ref
        first: dict[int, tuple[int, SequenceRef]] = {}
        for ref in self._judged.sequences:
            since = _time(self._judged, ref.start)
            if ref.entity not in first or since < first[ref.entity][0]:
                first[ref.entity] = since, ref
        joined = {
            first[entity][1]: ref
            for entity, (until, ref) in last.items()
            if entity in first and 0 < first[entity][0] - until <= max_gap_ns
        }
        continued = set(joined.values())
        alone = [
            Stretch(ref.entity, validation=(ref.start, ref.stop))
            for ref in self._validation.sequences
            if ref not in continued
        ]
        return alone + [
            Stretch(
                ref.entity,
                validation=(joined[ref].start, joined[ref].stop) if ref in joined else (0, 0),
                judged=(ref.start, ref.stop),
                judged_from_ns=_time(self._judged, ref.start),
                judged_until_ns=_time(self._judged, ref.stop - 1),
            )
            for ref in self._judged.sequences
        ]

    def read(self, stretch: Stretch, begin: int, end: int) -> Rows:
        """Copy rows `begin` to `end` of a stretch to memory."""
        splits = {"validation": self._validation, "judged": self._judged}
        parts = [splits[name].read(*own) for name, *own in self.places(stretch, begin, end)]
        if len(parts) == 1:
            return parts[0]
        before, after = parts
        return Rows(
            numeric=_joined(before.numeric, after.numeric),
            categorical=_joined(before.categorical, after.categorical),
            label=torch.cat([before.label, after.label]),
            target=None,
            time=torch.cat([before.time, after.time]),
        )

    @staticmethod
    def places(stretch: Stretch, begin: int, end: int) -> list[tuple[str, int, int]]:
        """Return where rows `begin` to `end` of a stretch lie: split, first row and end in it."""
        border = stretch.border
        found = []
        if begin < border:
            start = stretch.validation[0]
            found.append(("validation", start + begin, start + min(end, border)))
        if end > border:
            start = stretch.judged[0] - border
            found.append(("judged", start + max(begin, border), start + end))
        return found

    def walk(self, scorer: Scorer, lanes: Sequence[Lane], chunk_rows: int) -> Iterator[Chunk]:
        """Yield the rows of `lanes` in chunks, a few lanes side by side, each in time order.

        The caller scores each chunk before it asks for the next one: that brings the state up to
        date.
        """
        for batch in batches_of(lanes):
            yield from self.walk_batch(scorer, batch, chunk_rows)

    def walk_batch(
        self, scorer: Scorer, batch: tuple[Lane, ...], chunk_rows: int
    ) -> Iterator[Chunk]:
        """Yield the rows of one of `batches_of`, as `walk` does."""
        state = scorer.start(len(batch))
        group, begin = batch, 0
        while group:
            end = min(begin + chunk_rows, group[-1].stop)
            rows = tuple(self.read(lane.stretch, begin, end) for lane in group)
            yield Chunk(group, begin, end, rows, stack(rows), state)
            going = tuple(lane for lane in group if lane.stop > end)
            if 0 < len(going) < len(group):
                state = state.select(torch.arange(len(going)))
            group, begin = going, end

    def first_judged_row(self, stretch: Stretch, time_ns: int) -> int:
        """Return the offset of the first judged row of `stretch` at `time_ns` or later."""
        rows = range(stretch.judged[0] + stretch.lead, stretch.judged[1])
        row = bisect_left(rows, time_ns, key=partial(_time, self._judged))
        return stretch.first_judged + row

    def random_judged_time(self, share: float, following: int) -> int:
        """Return a time such that at least `following` judged rows lie at it or later.

        Parameters
        ----------
        share : float
            In [0, 1): how far into the rows that may begin a run of `following` rows.
        following : int
            At most the number of judged rows.
        """
        counts, since, width = self._histogram
        rank = int(share * (self.judged_rows - following + 1))
        place = int(np.searchsorted(counts.cumsum(), rank, side="right"))
        return since + place * width

    @cached_property
    def _histogram(self) -> tuple[np.ndarray, int, int]:
        """Judged rows per interval of time, time of the first interval, width of each in ns.

        Counting in intervals needs no more memory for a longer log, as sorting its rows would.
        """
        known = [stretch for stretch in self.stretches if stretch.judged_from_ns is not None]
        since = min(stretch.judged_from_ns or 0 for stretch in known)
        until = max(stretch.judged_until_ns or 0 for stretch in known)
        width = (until - since) // _HISTOGRAM_BINS + 1
        counts = np.zeros(_HISTOGRAM_BINS, dtype=np.int64)
        for stretch in known:
            for begin in range(stretch.first_judged, stretch.rows, _READ_ROWS):
                time = self.read(stretch, begin, min(begin + _READ_ROWS, stretch.rows)).time
                counts += np.bincount((time.numpy() - since) // width, minlength=_HISTOGRAM_BINS)
        return counts, since, width


def batches_of(lanes: Sequence[Lane]) -> list[tuple[Lane, ...]]:
    """Return the lanes that go side by side, the longest first, in the order of a walk.

    Lanes of like length go together and all advance by the same number of rows, so that nothing is
    padded and no row is scored that no one asked for. No batch knows of another one.
    """
    ordered = sorted(lanes, key=lambda lane: lane.stop, reverse=True)
    return [tuple(ordered[first : first + _LANES]) for first in range(0, len(ordered), _LANES)]


def stack(rows: Sequence[Rows]) -> Inputs:
    """Put equally many rows of several sequences side by side, as [B, T, channels]."""
    numeric = [part.numeric for part in rows if part.numeric is not None]
    categorical = [part.categorical for part in rows if part.categorical is not None]
    return Inputs(
        numeric=torch.stack(numeric) if numeric else None,
        categorical=torch.stack(categorical).long() if categorical else None,
    )


def _joined(before: torch.Tensor | None, after: torch.Tensor | None) -> torch.Tensor | None:
    return None if before is None or after is None else torch.cat([before, after])


def _time(split: Split, row: int) -> int:
    return int(split.read(row, row + 1).time.item())
