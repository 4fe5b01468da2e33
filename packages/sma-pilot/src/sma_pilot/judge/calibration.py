"""Calibration: whether what was given a chance of one in ten happens one time in ten.

The Brier score is the mean squared difference of a probability and what came of it (0 or 1). It
falls with sharpness as with honesty. Reliability is honesty alone: rows are put into bins of equal
width by their probability, and the mean squared difference of the mean probability and the
frequency of the event is taken over bins, weighted by their rows [1]_. The expected calibration
error is the same with the absolute difference [2]_.

References
----------
.. [1] A. H. Murphy, "A new vector partition of the probability score", Journal of Applied
   Meteorology 12, 1973.
.. [2] M. P. Naeini, G. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using
   Bayesian binning", AAAI 2015.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """The reliability diagram: rows by their probability, bins without a row left out.

    Attributes
    ----------
    rows : int64 [K]
    probability : float64 [K]
        Mean probability of each bin's rows.
    frequency : float64 [K]
        Share of them that came true.
    """

    rows: NDArray[np.int64]
    probability: NDArray[np.float64]
    frequency: NDArray[np.float64]

    @classmethod
    def of(cls, probability: NDArray[np.float32], happened: NDArray[np.bool_]) -> "Reliability":
        """Bin probabilities [N] in [0, 1]; N > 0."""
        bin_of_row = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        rows = np.bincount(bin_of_row, minlength=BINS)
        there = rows > 0
        total = np.bincount(bin_of_row, probability.astype(np.float64), BINS)
        hits = np.bincount(bin_of_row, happened, BINS)
        return cls(
            rows=rows[there],
            probability=total[there] / rows[there],
            frequency=hits[there] / rows[there],
        )

    @property
    def reliability(self) -> float:
        """Mean squared difference of probability and frequency; 0 is perfect."""
        return float(np.average((self.probability - self.frequency) ** 2, weights=self.rows))

    @property
    def expected_calibration_error(self) -> float:
        """Mean absolute difference of probability and frequency; 0 is perfect."""
        return float(np.average(np.abs(self.probability - self.frequency), weights=self.rows))


def squared_error(
    probability: NDArray[np.float32], happened: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return each row's term [N] of the Brier score."""
    return (probability.astype(np.float64) - happened) ** 2
