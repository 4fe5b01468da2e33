"""The anomaly score of arms that predict or reconstruct numeric channels: an error, smoothed."""

import numpy as np
import polars as pl
import torch
from torch import Tensor

# One channel that jumps a thousand scales must not drown the others for as long as the smoothing
# remembers: beyond 10 scales an error counts as 10.
_LARGEST_SQUARE = 10.0**2


def mean_squared_error(observed: Tensor, expected: Tensor) -> Tensor:
    """Mean over observed channels of the clipped squared difference.

    Parameters
    ----------
    observed : Tensor, float [..., C]
        Scaled values; not finite = missing.
    expected : Tensor, float [..., C]
        Their prediction; NaN = none was made.

    Returns
    -------
    Tensor, float [...]
        NaN where no channel has both.
    """
    square = (observed - expected).square_()
    known = square.isfinite()
    total = torch.where(known, square.clamp_(max=_LARGEST_SQUARE), 0.0).sum(-1)
    return total / known.sum(-1)  # 0 / 0 is the NaN of a row without a score


class Smoother:
    """Exponential mean of an error over its rows that have one.

    The weight of a new row is ``2 / (span + 1)``, so the mean looks back as far as a plain mean
    over `span` rows does. A row without an error gets no score and leaves the mean alone.

    Parameters
    ----------
    span : int
        Rows; 1 returns the error as it is.
    """

    def __init__(self, span: int) -> None:
        self._weight = 2.0 / (span + 1)

    def start(self, batch: int) -> Tensor:
        """Return the means of `batch` sequences before their first row, float64 [B]."""
        return torch.full((batch,), torch.nan, dtype=torch.float64)

    def chunk(self, error: Tensor, mean: Tensor) -> Tensor:
        """Smooth errors [B, T] on the CPU and bring `mean` [B] up to date, in place."""
        if self._weight == 1.0:
            return error
        smooth = error.double().numpy()
        for i, row in enumerate(smooth):
            known = ~np.isnan(row)
            if known.any():
                row[known] = self._filter(row[known], mean[i].item())
                mean[i] = row[known][-1]
        return torch.from_numpy(smooth).to(error.dtype)

    def _filter(self, error: np.ndarray, previous: float) -> np.ndarray:
        # A mean that starts at its first value moves on from whatever is put before the errors.
        first = error[:1] if np.isnan(previous) else [previous]
        values = pl.Series(np.concatenate([first, error]))
        return values.ewm_mean(alpha=self._weight, adjust=False)[1:].to_numpy()

    def step(self, error: float, mean: Tensor) -> float:
        """Smooth one error and bring `mean` [1] up to date, in place."""
        if self._weight == 1.0 or error != error:
            return error
        previous = mean.item()
        if previous != previous:
            previous = error
        smooth = self._weight * error + (1.0 - self._weight) * previous
        mean.fill_(smooth)
        return smooth
