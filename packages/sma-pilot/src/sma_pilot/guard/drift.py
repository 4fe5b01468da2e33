"""Drift of the inputs: how far an entity's latest rows are from the training slice, by channel.

The measure is the population stability index of each channel [1]_, the symmetric Kullback-Leibler
divergence of two histograms, ``sum (p - q) ln(p / q)``. It is chosen over a z-score of the window's
mean for three reasons. It also sees a change of spread, of shape, of the share of missing values
and of categories, with one number for all of them. It is a size of effect, in conventional use with
limits of 0.1 and 0.25, while a z-score grows with the root of the window. And a z-score takes rows
as independent, which the rows of a machine are not: it would alarm on any slow process.

Its price is noise: over W independent rows and B bins an undrifted channel has an index of about
``(B - 1) / W`` [2]_, and more where neighbouring rows are alike, so the window should cover the
usual cycle of the process.

References
----------
.. [1] N. Siddiqi, "Credit Risk Scorecards", Wiley, 2006.
.. [2] B. Yurdakul, J. Naranjo, "Statistical properties of the population stability index",
   Journal of Risk Model Validation 14 (4), 2020.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sma_core.dataset import DatasetCard, Rows, Split
from sma_core.model import Inputs
from sma_pilot.progress import OnProgress

BINS = 10
"""Of a numeric channel: tenths of its training values. A further one holds missing values."""
_MOST_CATEGORIES = 63
# Scaled values end at +-10 (logs/scaling.py); a step is a two-hundredth of a training deviation.
_REACH, _STEPS_PER_UNIT = 10.0, 200
_FINE = int(2 * _REACH * _STEPS_PER_UNIT) + 1
_READ_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftReference:
    """Histograms of the training slice, all entities together.

    Parameters
    ----------
    channels : tuple of str
        The D channels, numeric ones first.
    tables : tuple of uint8 arrays
        For each channel: the bin of a fine step of its value, or of a category. The last entry is
        that of a missing value, or of a category outside of the vocabulary.
    share : float64 [D, B]
        Share of training rows in each bin; bins that a channel lacks hold none.
    """

    channels: tuple[str, ...]
    tables: tuple[NDArray[np.uint8], ...]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, train: Split, on_progress: OnProgress) -> Self:
        """Count the training slice, in one pass and bounded memory."""

        def pieces() -> Iterator[Rows]:
            for start in range(0, train.rows, _READ_ROWS):
                on_progress("count training rows", start, train.rows)
                yield train.read(start, min(start + _READ_ROWS, train.rows))
            on_progress("count training rows", train.rows, train.rows)

        return cls.of_rows(train.card, pieces())

    @classmethod
    def of_rows(cls, card: DatasetCard, pieces: Iterable[Rows]) -> Self:
        """Count rows of any slice, given piece by piece."""
        numeric = [channel.name for channel in card.numeric]
        categorical = card.categorical
        fine = np.zeros((len(numeric), _FINE + 1), np.int64)
        counts = [np.zeros(len(channel.vocabulary), np.int64) for channel in categorical]
        total = 0
        for rows in pieces:
            values, categories = _arrays(rows.numeric, rows.categorical)
            for own, column in zip(fine, _fine(values).T, strict=True):
                own += np.bincount(column, minlength=_FINE + 1)
            for own, column in zip(counts, categories.T, strict=True):
                own += np.bincount(column, minlength=len(own))
            total += len(rows.time)
        tables = [tenths(own) for own in fine] + [_common(own) for own in counts]
        width = max([BINS + 1, *(int(table.max(initial=0)) + 1 for table in tables)])
        share = [
            np.bincount(table[: len(own)], weights=own, minlength=width) / max(total, 1)
            for table, own in zip(tables, [*fine, *counts], strict=True)
        ]
        return cls(
            channels=(*numeric, *(channel.name for channel in categorical)),
            tables=tuple(tables),
            share=np.array(share),
        )

    def bins(self, rows: Inputs) -> NDArray[np.uint8]:
        """Return the bin of each channel at each row, uint8 [T, D], of one sequence."""
        values, categories = _arrays(
            None if rows.numeric is None else rows.numeric[0],
            None if rows.categorical is None else rows.categorical[0],
        )
        found = [*_fine(values).T, *categories.T]
        bins = [
            # What lies outside of a vocabulary is in the last entry, as a missing value is.
            table[np.where((column >= 0) & (column < len(table)), column, len(table) - 1)]
            for table, column in zip(self.tables, found, strict=True)
        ]
        return np.stack(bins, 1)

    def indices(self, pieces: Iterable[Inputs]) -> NDArray[np.float64]:
        """Return the index of every channel, float64 [D], over all rows of `pieces` together."""
        counts = np.zeros(self.share.shape, np.int64)
        for rows in pieces:
            for own, column in zip(counts, self.bins(rows).T, strict=True):
                own += np.bincount(column, minlength=self.share.shape[1])
        return stability_index(counts, self.share)


def stability_index(counts: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the population stability index [D] of rows in bins [D, B] against their shares.

    Half a row stands in every bin, on both sides: what the reference never saw would be infinitely
    far.
    """
    rows, width = counts.sum(1, keepdims=True), share.shape[1]
    seen = (counts + 0.5) / (rows + 0.5 * width)
    expected = (rows * share + 0.5) / (rows + 0.5 * width)
    return ((seen - expected) * np.log(seen / expected)).sum(1)


def _arrays(
    numeric: Tensor | None, categorical: Tensor | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return values [T, C] and categories [T, K], without a column where there is none."""
    given = numeric if numeric is not None else categorical
    steps = 0 if given is None else len(given)
    values, categories = np.zeros((steps, 0), np.float32), np.zeros((steps, 0), np.int64)
    if numeric is not None:
        values = numeric.float().cpu().numpy()
    if categorical is not None:
        categories = categorical.long().cpu().numpy()
    return values, categories


def _fine(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the fine step of each value; the one past the last is that of a missing value."""
    known = np.isfinite(values)
    clipped = np.clip(np.where(known, values, 0.0), -_REACH, _REACH)
    steps = np.rint((clipped + _REACH) * _STEPS_PER_UNIT).astype(np.int64)
    return np.where(known, steps, _FINE)


def tenths(fine: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Cut a fine histogram into tenths of its known values, by the rank of each step's middle.

    A value that most rows have keeps a bin of its own. Steps that training never saw lie in the bin
    of their neighbours, or, outside of all it saw, often in one that training left empty.
    """
    known = fine[:_FINE]
    before = np.cumsum(known) - known
    middle = (before + known / 2) / max(int(known.sum()), 1)
    table = np.minimum(middle * BINS, BINS - 1).astype(np.uint8)
    return np.append(table, np.uint8(BINS))


def _common(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give each common category its own bin, the others one together, unknown ones the last."""
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    known = np.minimum(rank, _MOST_CATEGORIES)
    return np.append(known, known.max(initial=-1) + 1).astype(np.uint8)


class DriftWindow:
    """The index of each channel over the latest rows of one entity.

    A row costs one look-up a channel and a sum over D x B numbers, whatever the window.

    Parameters
    ----------
    reference : DriftReference
    size : int
        Rows W; before so many have come there is no index.
    channels : int
        The index that counts is that of the channel in this place, the most drifted being the
        first: it is over a limit when at least so many channels are.
    """

    def __init__(self, reference: DriftReference, size: int, channels: int = 1) -> None:
        self._reference = reference
        self._size = size
        self._rank = min(channels, len(reference.channels))
        # Half a row in every bin, on both sides: what training never saw would be infinitely far.
        count = np.arange(size + 1)
        width = reference.share.shape[1]
        self._share = (count + 0.5) / (size + 0.5 * width)
        self._log_share = np.log(self._share)
        self._expected = (size * reference.share + 0.5) / (size + 0.5 * width)
        self._log_expected = np.log(self._expected)
        self._places = np.arange(len(reference.channels))
        self._counts = np.zeros(reference.share.shape, np.int64)
        self._bins = np.zeros((size, len(reference.channels)), np.uint8)
        self._seen = 0

    @property
    def nbytes(self) -> int:
        """Bytes that an entity's window holds beyond what all windows share."""
        return self._counts.nbytes + self._bins.nbytes

    def push(self, rows: Inputs) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Take the next rows of one sequence.

        Returns
        -------
        index : float64 [T]
            At each row, of the window that ends with it; NaN until the window is full.
        channel : int64 [T]
            Which channel's it is.
        """
        bins = self._reference.bins(rows)
        index = np.full(len(bins), np.nan)
        channel = np.zeros(len(bins), np.int64)
        for t, row in enumerate(bins):
            place = self._seen % self._size
            if self._seen >= self._size:
                self._counts[self._places, self._bins[place]] -= 1
            self._bins[place] = row
            self._counts[self._places, row] += 1
            self._seen += 1
            if self._seen >= self._size:
                own = self.indices()
                channel[t] = np.argsort(-own, kind="stable")[self._rank - 1]
                index[t] = own[channel[t]]
        return index, channel

    def indices(self) -> NDArray[np.float64]:
        """Return the index of every channel, float64 [D]."""
        apart = self._share[self._counts] - self._expected
        return (apart * (self._log_share[self._counts] - self._log_expected)).sum(1)

    def copy(self) -> "DriftWindow":
        """Return a copy; what never changes is shared."""
        twin = object.__new__(DriftWindow)
        twin.__dict__.update(self.__dict__)
        twin._counts, twin._bins = self._counts.copy(), self._bins.copy()
        return twin
