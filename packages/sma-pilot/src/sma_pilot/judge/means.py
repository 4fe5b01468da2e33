"""Metrics that are means over rows, under row weights."""

import numpy as np
from numpy.typing import NDArray


class MeanOfRows:
    """The mean of a value over rows, or the root of that mean, under weights of time bins.

    Parameters
    ----------
    value : float64 [N]
        At least one, no NaN.
    bin_of_row : int64 [N]
    root : bool
        Take the square root of the mean, as a root mean squared error does.
    """

    def __init__(
        self, value: NDArray[np.float64], bin_of_row: NDArray[np.int64], *, root: bool = False
    ) -> None:
        bins = int(bin_of_row.max()) + 1
        # Weights belong to bins, so the rows of a bin enter by their sum and number alone.
        self._total = np.bincount(bin_of_row, value, bins)
        self._rows = np.bincount(bin_of_row, minlength=bins).astype(np.float64)
        self._root = root
        self.carriers = np.flatnonzero(self._rows)

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return the mean; NaN when no row has weight."""
        weights = bin_weights[: self._rows.size]
        rows = (weights * self._rows).sum()
        if rows == 0:
            return float("nan")
        mean = float((weights * self._total).sum() / rows)
        return mean**0.5 if self._root else mean

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds to the mean, as a difference from its rows' share of it.

        Centred, so that a bin of many rows does not look like one of a large error.
        """
        share = self._rows / self._rows.sum()
        mean = self._total.sum() / self._rows.sum()
        added = np.zeros(bins)
        added[: share.size] = self._total / self._rows.sum() - share * mean
        if self._root and mean > 0:
            added /= 2 * mean**0.5
        return added
