"""Channels that give the answer away: how well a single one tells event rows from normal rows.

The measure is the area under the ROC curve of one channel, which is the rank correlation with the
label but for a linear map, folded so that 0.5 is chance and 1 a perfect answer in either direction.
Numeric channels are measured on a random sample of each class, whether a value is there at all and
categorical channels on all rows. Memory is bounded.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from sma_pilot.logs.blocks import Block
from sma_pilot.logs.columns import Columns

SUSPICIOUS = 0.999
"""Area from which one channel is as good as the answer."""
FEWEST_ROWS = 20
"""Rows of each class below which an area says nothing."""
_SAMPLE_BYTES = 16 * 2**20
_LARGEST_SAMPLE = 20_000
_MOST_WORDS = 1000


@dataclass(frozen=True)
class Separation:
    """How well a channel alone tells the classes apart.

    Parameters
    ----------
    channel : str
    by : {"value", "missing", "word"}
        What of the channel tells: its value, whether it is there, its word.
    area : float
        Folded area under the ROC curve, 0.5 to 1.
    is_answer : bool
        Whether the channel holds one value in all normal rows and one other in all event rows.
    """

    channel: str
    by: Literal["value", "missing", "word"]
    area: float
    is_answer: bool = False


class _ClassSample:
    """A uniform sample of rows [T, C] of one class: those with the smallest random keys."""

    def __init__(self, channels: int, seed: int) -> None:
        by_memory = _SAMPLE_BYTES // (8 * max(channels, 1))
        self._size = max(1000, min(by_memory, _LARGEST_SAMPLE))
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self.rows = np.empty((0, channels))
        self.seen = 0

    def add(self, rows: NDArray[np.float64]) -> None:
        keys = self._random.random(len(rows))
        self.seen += len(rows)
        if len(self._keys) == self._size:  # most rows fall out: do not copy them first
            near = keys < self._keys.max()
            keys, rows = keys[near], rows[near]
        self._keys = np.concatenate([self._keys, keys])
        self.rows = np.concatenate([self.rows, rows])
        if len(self._keys) > self._size:
            kept = np.sort(np.argpartition(self._keys, self._size)[: self._size])
            self._keys, self.rows = self._keys[kept], self.rows[kept]


class SeparationTaker:
    """Measures every channel against one truth, block by block.

    Parameters
    ----------
    columns : Columns
        The log's channels.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        channels = len(columns.numeric)
        self._samples = [_ClassSample(channels, seed) for seed in (0, 1)]
        self._present = np.zeros((2, channels), np.int64)
        self._words: list[dict[str | None, list[int]] | None] = [{} for _ in columns.categorical]

    def add(self, block: Block, truth: NDArray[np.int32]) -> None:
        """Add a block whose rows [T] are 1 (event), 0 (normal) or -1 (left out)."""
        for number in (0, 1):
            mine = truth == number
            if not mine.any():
                continue
            rows = block.numeric[mine]
            self._samples[number].add(rows)
            self._present[number] += (~np.isnan(rows)).sum(axis=0)
            for i, words in enumerate(block.categorical):
                self._count_words(i, words.filter(pl.Series(mine)), number)

    def _count_words(self, channel: int, words: pl.Series, number: int) -> None:
        counts = self._words[channel]
        if counts is None:
            return
        for word, count in words.value_counts().iter_rows():
            counts.setdefault(word, [0, 0])[number] += count
        if len(counts) > _MOST_WORDS:  # so many that each row could have its own
            self._words[channel] = None

    def separations(self) -> list[Separation]:
        """Return what can be measured of each channel; nothing if a class is too rare."""
        rows = [sample.seen for sample in self._samples]
        if min(rows) < FEWEST_ROWS:
            return []
        found = []
        share = self._present / np.asarray(rows)[:, None]
        for i, name in enumerate(self._columns.numeric):
            found.append(Separation(name, "missing", 0.5 + abs(share[1, i] - share[0, i]) / 2))
            normal, event = (_present(sample.rows[:, i]) for sample in self._samples)
            if min(len(normal), len(event)) >= FEWEST_ROWS:
                constant = np.ptp(normal) == 0 and np.ptp(event) == 0
                found.append(
                    Separation(
                        name,
                        "value",
                        area_under_curve(normal, event),
                        is_answer=bool(constant and normal[0] != event[0]),
                    )
                )
        for name, counts in zip(self._columns.categorical, self._words, strict=True):
            if counts is not None and 2 * len(counts) <= rows[1]:
                found.append(_separation_by_word(name, counts))
        return found


def area_under_curve(normal: NDArray[np.float64], event: NDArray[np.float64]) -> float:
    """Return the folded area: how often a random event value lies above a random normal one.

    Ties count half (Mann and Whitney, 1947); values below 0.5 are mirrored.
    """
    ranks = rankdata(np.concatenate([event, normal]))
    above = ranks[: len(event)].sum() - len(event) * (len(event) + 1) / 2
    area = float(above) / (len(event) * len(normal))
    return max(area, 1 - area)


def _separation_by_word(name: str, counts: dict[str | None, list[int]]) -> Separation:
    # The best score that a word allows is its share of events: rank the words by it.
    ordered = sorted(counts.values(), key=lambda pair: pair[1] / (pair[0] + pair[1]))
    normal, event = np.asarray(ordered, dtype=np.float64).T
    below = np.concatenate([[0.0], np.cumsum(normal)[:-1]])
    area = float((event * (below + normal / 2)).sum() / (event.sum() * normal.sum()))
    is_answer = len(ordered) == 2 and area == 1.0
    return Separation(name, "word", area, is_answer=is_answer)


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


class RepeatTaker:
    """Estimates which share of the judged rows was seen in training: old rows, played again.

    A row counts with the three before it, and only where these four differ, so that a machine at
    rest repeats nothing. Of all such stretches a random, growing part is left out, the same in both
    slices, so that memory stays bounded.
    """

    def __init__(self, limit: int = 500_000) -> None:
        self._limit = limit
        self._mask = np.uint64(0)
        self._train: set[int] = set()
        self._judged: Counter[int] = Counter()

    def add(self, block: Block) -> None:
        """Add the next block; stretches across blocks are left out."""
        if len(block.time) < _STRETCH or block.numeric.shape[1] == 0:
            return
        rows = pl.DataFrame(block.numeric, orient="row").hash_rows(seed=1).to_numpy()
        windows = np.lib.stride_tricks.sliding_window_view(rows, _STRETCH)
        moves = (windows != windows[:, :1]).any(axis=1)
        hashes = (windows * _ODD).sum(axis=1, dtype=np.uint64)
        slices = block.slices[_STRETCH - 1 :]
        for number, kept in ((0, self._train), (2, self._judged)):
            kept.update(self._sampled(hashes[moves & (slices == number)]).tolist())
        while max(len(self._train), len(self._judged)) > self._limit:
            self._mask = self._mask << np.uint64(1) | np.uint64(1)
            mask = int(self._mask)
            self._train = {value for value in self._train if not value & mask}
            self._judged = Counter({k: n for k, n in self._judged.items() if not k & mask})

    def _sampled(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return hashes[hashes & self._mask == 0]

    @property
    def share(self) -> float:
        """Share of judged rows that training had seen; 0 where none can be told."""
        seen = sum(count for value, count in self._judged.items() if value in self._train)
        return seen / max(1, self._judged.total())


_STRETCH = 4
_ODD = np.array([1, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
