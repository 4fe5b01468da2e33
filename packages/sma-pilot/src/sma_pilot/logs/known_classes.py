"""The classes that a classification tells: those of training, and no other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sma_pilot.errors import LogError
from sma_pilot.logs.blocks import Block
from sma_pilot.logs.labels import UNKNOWN, LabelCoding
from sma_pilot.logs.slices import SLICES, TRAIN
from sma_pilot.logs.units import UnitClasses


@dataclass(frozen=True, eq=False)
class KnownClasses:
    """Classes by the number that the data set knows them by.

    Parameters
    ----------
    names : tuple of str
        Of the K classes that a unit of training has.
    units : UnitClasses
        The class of every unit, as a number in the coding of the whole log.
    numbers : int32 [values]
        Of each value of the whole log: the number of its class, K for one that training has not.
    counts : mapping slice -> mapping value -> int
        Units of each value, values without one left out.
    """

    names: tuple[str, ...]
    units: UnitClasses
    numbers: NDArray[np.int32]
    counts: dict[str, dict[str, int]]

    @classmethod
    def of(
        cls, units: UnitClasses | None, coding: LabelCoding | None, column: str | None
    ) -> "KnownClasses | None":
        """Take the classes of training; None for a log whose labels are events.

        Raises
        ------
        LogError
            Training has fewer than two classes.
        """
        if units is None or coding is None:
            return None
        values = list(coding.codes)
        counts = units.counts(len(values))
        known = counts[TRAIN] > 0
        names = tuple(value for value, there in zip(values, known, strict=True) if there)
        if len(names) < 2:
            what = f"the class {names[0]!r} alone" if names else "no class at all"
            raise LogError(
                f"log.class_label: column {column!r} gives the train slice {what}, so there is "
                "nothing to tell apart; move slices.validation_from, or name another column"
            )
        numbers = np.where(known, np.cumsum(known) - 1, len(names)).astype(np.int32)
        return cls(
            names=names,
            units=units,
            numbers=numbers,
            counts={
                name: {v: int(c) for v, c in zip(values, own, strict=True) if c}
                for name, own in zip(SLICES, counts, strict=True)
            },
        )

    def label_of(self, block: Block) -> NDArray[np.int32]:
        """Return the class of each row's unit; -1 where nobody knows, K for an unknown class."""
        found = self.units.class_of(block)
        return np.where(found < 0, UNKNOWN, self.numbers[found]).astype(np.int32)

    def target_of(self, label: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return what rows of these labels are taught: nothing where the class is not known."""
        return np.where(label < len(self.names), label, UNKNOWN).astype(np.int32)

    def to_dict(self) -> dict[str, Any]:
        """Return what provenance says of them."""
        unseen = {
            name: {value: count for value, count in own.items() if value not in self.names}
            for name, own in self.counts.items()
        }
        return {"units": self.counts, "not_in_training": unseen}
