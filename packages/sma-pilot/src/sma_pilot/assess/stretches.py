"""Stretches of a prepared data set, with the rows before them: memory stays bounded on any log."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_core.dataset.reader import Split

CONTEXT = 256
"""Rows before a stretch that are read along: what looks back over more of them is cut off."""
_LARGEST = 10.0
"""Scaled readings beyond this count as this, as errors do in `forecast_anomaly`."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive rows of a split; those before `first` are context alone.

    Attributes
    ----------
    observed : float32 [R, C]
        Scaled readings; NaN = missing.
    values : float64 [R, C]
        The same, the last reading carried on where one is missing, 0 (the channel's centre) before
        a sequence's first.
    time : int64 [R]
        Nanoseconds since the epoch.
    sequence, age : int64 [R]
        Which sequence a row is of, and how many rows of it came before.
    first : int
    """

    observed: NDArray[np.float32]
    values: NDArray[np.float64]
    time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    age: NDArray[np.int64]
    first: int

    def before(self, steps: int) -> NDArray[np.float64]:
        """Return `values` so many rows earlier; 0 where the sequence was not there yet."""
        earlier = np.zeros_like(self.values)
        earlier[steps:] = self.values[:-steps]
        earlier[self.age < steps] = 0.0
        return earlier


def stretches(split: Split, rows: int, most_rows: int) -> Iterator[Stretch]:
    """Read a split in stretches of `rows`; evenly spaced ones where it has over `most_rows`."""
    offsets = split.offsets.numpy()
    count = -(-split.rows // rows)
    taken = min(count, max(1, most_rows // rows))
    for number in np.unique(np.linspace(0, count - 1, taken).round().astype(np.int64)).tolist():
        start = number * rows
        begin = max(0, start - CONTEXT)
        read = split.read(begin, min(start + rows, split.rows))
        assert read.numeric is not None  # noqa: S101  (the plan asks for a numeric channel)
        observed = read.numeric.numpy()
        place = np.arange(begin, begin + len(observed))
        sequence = np.searchsorted(offsets, place, side="right") - 1
        age = place - offsets[sequence]
        yield Stretch(
            observed=observed,
            values=_carried_on(observed, age),
            time=read.time.numpy(),
            sequence=sequence,
            age=age,
            first=start - begin,
        )


def _carried_on(observed: NDArray[np.float32], age: NDArray[np.int64]) -> NDArray[np.float64]:
    rows = np.arange(len(observed))
    known = np.isfinite(observed)
    last = np.maximum.accumulate(np.where(known, rows[:, None], -1), axis=0)
    reaches = last >= np.maximum(rows - age, 0)[:, None]
    values = np.take_along_axis(observed, np.maximum(last, 0), axis=0).astype(np.float64)
    return np.clip(np.where(reaches, values, 0.0), -_LARGEST, _LARGEST)
