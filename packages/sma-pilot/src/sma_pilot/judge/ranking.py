"""Average precision under row weights, sorted once and then linear in the rows."""

import numpy as np
from numpy.typing import NDArray


class RankedRows:
    """Rows in falling order of score; a call gives the average precision under bin weights.

    Average precision is the sum over distinct scores of precision times the gain in recall, with
    no interpolation. Only scores that some positive row has contribute, so rows are cut into one
    segment for each such score: the rows below the previous one, down to its own ties.

    Parameters
    ----------
    score : float32 [N]
        No NaN.
    positive : bool [N]
    bin_of_row : int64 [N]
        The weight of a row is the weight of its bin.
    """

    def __init__(
        self,
        score: NDArray[np.float32],
        positive: NDArray[np.bool_],
        bin_of_row: NDArray[np.int64],
    ) -> None:
        order = np.argsort(-score, kind="stable")
        score, positive = score[order], positive[order]
        # -inf - -inf is NaN, so neighbours are compared and not subtracted.
        ends_tie = np.concatenate([score[1:] != score[:-1], [True]])[: score.size]
        tie = np.cumsum(ends_tie) - ends_tie
        has_positive = np.bincount(tie, weights=positive) > 0
        ends = np.flatnonzero(ends_tie)[has_positive] + 1
        self._bins = bin_of_row[order][: ends[-1] if ends.size else 0]
        self._starts = np.concatenate([[0], ends[:-1]])
        positive_rows = np.flatnonzero(positive)
        self.carriers = self._bins[positive_rows]
        self._positive_starts = np.searchsorted(positive_rows, self._starts)
        self.positives = positive_rows.size

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return the average precision; NaN when no positive row has weight."""
        if not self.positives:
            return float("nan")
        precision, gained = self._precision(bin_weights)
        total = gained.sum()
        return float(precision @ gained / total) if total > 0 else float("nan")

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds to the average precision of equal weights.

        A positive row adds the precision at its score over the number of positives.
        """
        if not self.positives:
            return np.zeros(bins)
        precision, _ = self._precision(np.ones(bins))
        rows = np.diff(self._positive_starts, append=self.positives)
        share = np.repeat(precision, rows) / self.positives
        added = np.zeros(bins)
        np.add.at(added, self.carriers, share)
        return added

    def _precision(
        self, bin_weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Precision at the end of each segment, and the positive weight gained in it."""
        seen = np.cumsum(np.add.reduceat(bin_weights[self._bins], self._starts))
        gained = np.add.reduceat(bin_weights[self.carriers], self._positive_starts)
        right = np.cumsum(gained)
        return np.divide(right, seen, out=np.zeros_like(right), where=seen > 0), gained
