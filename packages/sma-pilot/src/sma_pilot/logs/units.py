"""What a classification tells the class of: a session, or a window of an entity's time."""

from collections import defaultdict
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from sma_pilot.logs.blocks import Block
from sma_pilot.logs.labels import UNKNOWN
from sma_pilot.logs.slices import OUTSIDE, SLICES, nanoseconds

_Parts = list[tuple[NDArray[np.int64], NDArray[np.int32]]]


class UnitClasses:
    """The class of every unit: the last one that its rows, of its own slice, were labelled with.

    A unit that lies across a border between slices is one unit in each, of the class that is
    written there: no label of a later slice reaches an earlier one.

    Parameters
    ----------
    window : timedelta, optional
        Length of the windows, which begin with the clock; None: an entity is one unit.
    """

    def __init__(self, window: timedelta | None) -> None:
        self._window = None if window is None else nanoseconds(window)
        self._parts: dict[int, _Parts] = defaultdict(list)
        self._joined: dict[int, tuple[NDArray[np.int64], NDArray[np.int32]]] = {}

    def add(self, block: Block) -> None:
        """Add the next block in order."""
        key = self._key(block)
        first = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
        labelled = np.where(block.label > UNKNOWN, np.arange(key.size), -1)
        last = np.maximum.reduceat(labelled, first)
        classes = np.where(last < 0, UNKNOWN, block.label[last]).astype(np.int32)
        self._parts[block.entity].append((key[first], classes))

    def class_of(self, block: Block) -> NDArray[np.int32]:
        """Return the class of the unit of each row, -1 where nobody knows; all blocks were added.

        A class is its number in the coding of the whole log.
        """
        keys, classes = self._of(block.entity)
        return classes[np.searchsorted(keys, self._key(block))]

    def counts(self, classes: int) -> NDArray[np.int64]:
        """Return how many units of each slice have each class [slices, classes]."""
        counts = np.zeros((len(SLICES), classes), np.int64)
        for entity in self._parts:
            keys, found = self._of(entity)
            number = keys % (OUTSIDE + 1)
            known = (found > UNKNOWN) & (number < OUTSIDE)
            np.add.at(counts, (number[known], found[known]), 1)
        return counts

    def _key(self, block: Block) -> NDArray[np.int64]:
        """Return the number of each row's unit, rising with time: its window, then its slice."""
        unit = 0 if self._window is None else block.time // self._window
        return unit * (OUTSIDE + 1) + block.slices

    def _of(self, entity: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Keys of an entity's units, rising, and their classes; parts of two blocks are joined."""
        if entity not in self._joined:
            keys = np.concatenate([keys for keys, _ in self._parts[entity]])
            classes = np.concatenate([classes for _, classes in self._parts[entity]])
            first = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
            labelled = np.where(classes > UNKNOWN, np.arange(keys.size), -1)
            last = np.maximum.reduceat(labelled, first)
            joined = np.where(last < 0, UNKNOWN, classes[last]).astype(np.int32)
            self._joined[entity] = keys[first], joined
        return self._joined[entity]
