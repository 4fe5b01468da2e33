"""How unevenly error lies over steps: pure functions of errors and of an order to take them in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Coverage:
    """Share of the total error that the steps hold which are taken first.

    With the errors as their own key it is the Lorenz curve (Lorenz, 1905) from the hard end.

    Parameters
    ----------
    error : float [N]
        Not negative.
    key : float [N]
        Steps are taken from its highest value down; equal values share alike.
    """

    def __init__(self, error: NDArray[np.float64], key: NDArray[np.float64]) -> None:
        _, group = np.unique(-key, return_inverse=True)
        sizes = np.bincount(group)
        held = np.bincount(group, weights=error)
        total = held.sum()
        # A total of 0 leaves nothing to be covered: any choice has it all.
        shares = np.cumsum(held) / total if total > 0 else np.ones(len(held))
        self._steps = np.concatenate([[0.0], np.cumsum(sizes) / error.size])
        self._held = np.concatenate([[0.0 if total > 0 else 1.0], shares])

    def __call__(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of error that so large shares of the steps hold."""
        return np.interp(shares, self._steps, self._held)

    def needed(self, held: float) -> float:
        """Return the smallest share of the steps that holds so large a share of the error."""
        place = int(np.searchsorted(self._held, held * (1 - 1e-12)))
        if place == 0:
            return 0.0
        (low, high), (left, right) = (
            self._held[place - 1 : place + 1],
            self._steps[place - 1 : place + 1],
        )
        return float(left + (right - left) * (held - low) / (high - low))

    @property
    def gini(self) -> float:
        """Gini's coefficient: 0 where each step holds as much, near 1 where one holds all."""
        return float(2 * np.trapezoid(self._held, self._steps) - 1)


@dataclass(frozen=True)
class HardRuns:
    """Steps harder than the mean, and how they follow each other.

    Attributes
    ----------
    rate : float
        Share of the steps.
    count : int
        Runs of such steps, one right after the other.
    mean_length, longest : float, int
        Of a run, in steps; 0 where there is none.
    by_chance : float
        Mean length if as many hard steps came independently: 1 / (1 - rate).
    """

    rate: float
    count: int
    mean_length: float
    longest: int
    by_chance: float

    @property
    def clustering(self) -> float:
        """How many times longer runs are than by chance."""
        return self.mean_length / self.by_chance


def hard_runs(error: NDArray[np.float64], run: NDArray[np.int64]) -> HardRuns:
    """Find the runs of steps whose error is over the mean.

    Parameters
    ----------
    error : float [N]
    run : int [N]
        Steps of another number do not follow each other.
    """
    hard = error > error.mean()
    edges = np.flatnonzero(np.diff(run)) + 1
    # A step that is not hard between any two stretches, so that no run crosses.
    marked = np.concatenate([[0], np.insert(hard.astype(np.int8), edges, 0), [0]])
    turns = np.diff(marked)
    lengths = np.flatnonzero(turns == -1) - np.flatnonzero(turns == 1)
    rate = float(hard.mean())
    return HardRuns(
        rate=rate,
        count=lengths.size,
        mean_length=float(lengths.mean()) if lengths.size else 0.0,
        longest=int(lengths.max(initial=0)),
        by_chance=1 / (1 - rate),
    )
