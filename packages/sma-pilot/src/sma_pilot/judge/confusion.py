"""Which class was told for which, and the metrics of classes that come from it.

Balanced accuracy is the mean over classes of the share that was told rightly, so a rare class
counts as much as a common one [1]_. Macro F1 is the mean over classes of the harmonic mean of
precision and recall, 2 hits / (2 hits + misses + false ones) [2]_. A class that is neither true nor
told anywhere is left out of the mean.

References
----------
.. [1] K. H. Brodersen, C. S. Ong, K. E. Stephan, J. M. Buhmann, "The balanced accuracy and its
   posterior distribution", ICPR 2010.
.. [2] J. Opitz, S. Burst, "Macro F1 and macro F1", arXiv:1911.03347, 2019: the mean of F1 scores,
   not the F1 of means.
"""

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray


class Confusion:
    """How many units of each class were told to be of each, under weights of time bins.

    Parameters
    ----------
    label, predicted : int32 [N]
        Classes from 0 to K - 1; at least one unit.
    bin_of_row : int64 [N]
    classes : int
        K.
    """

    def __init__(
        self,
        label: NDArray[np.int32],
        predicted: NDArray[np.int32],
        bin_of_row: NDArray[np.int64],
        classes: int,
    ) -> None:
        self._label = label.astype(np.int64)
        self._predicted = predicted.astype(np.int64)
        self._bins = bin_of_row
        self._classes = classes
        self._place = self._label * classes + self._predicted
        self.carriers = np.unique(bin_of_row)

    def table(self, bin_weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight of each true class [K] told as each class [K]."""
        size = self._classes**2
        counts = np.bincount(self._place, bin_weights[self._bins], minlength=size)
        return counts.astype(np.float64).reshape(self._classes, self._classes)

    @property
    def judged_classes(self) -> int:
        """Number of classes that a unit truly has."""
        return np.unique(self._label).size

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return the metric; NaN when no unit has weight."""
        value, there = self._by_class(self.table(bin_weights))
        return float(value[there].mean()) if there.any() else float("nan")

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds to the metric of equal weights, to first order.

        It is the derivative by the weight of the bin, so it adds up to nothing.
        """
        added = self._by_unit(self.table(np.ones(int(self._bins.max()) + 1)))
        return np.bincount(self._bins, added, minlength=bins).astype(np.float64)

    @abstractmethod
    def _by_class(
        self, table: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the metric of each class [K], and which classes count."""

    @abstractmethod
    def _by_unit(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivative of the metric by the weight of each unit [N]."""


class BalancedAccuracy(Confusion):
    """Mean over classes of the share of their units that is told rightly."""

    def _by_class(
        self, table: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return recall_of_classes(table)

    def _by_unit(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        recall, there = self._by_class(table)
        hit = self._label == self._predicted
        share = table.sum(1) * there.sum()
        return (hit - recall[self._label]) / share[self._label]


class MacroF1(Confusion):
    """Mean over classes of their F1 score."""

    def _by_class(
        self, table: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        both = table.sum(0) + table.sum(1)
        there = both > 0
        return 2 * np.diagonal(table) / np.where(there, both, 1.0), there

    def _by_unit(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        score, there = self._by_class(table)
        both = np.where(there, table.sum(0) + table.sum(1), 1.0)
        # A unit adds one to what is true of its class and one to what is told of the other.
        hit = self._label == self._predicted
        share = score / both
        lost = share[self._label] + share[self._predicted]
        return (2 * hit / both[self._label] - lost) / there.sum()


def recall_of_classes(
    table: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the share of each true class [K] that is told rightly, and which have units."""
    total = table.sum(1)
    there = total > 0
    return np.diagonal(table) / np.where(there, total, 1.0), there
