"""The plain baseline of anomaly detection: distance from the plane of usual rows.

Principal components of the training rows span the usual; what a row has beside them is its score.
It knows neither order nor time, and on public machine logs it is hard to beat, so it stands beside
every model.
"""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_pilot.arms.forecast_error import mean_squared_error
from sma_pilot.arms.row_scorer import RowScorer
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.plan import PCAPlan, Plan
from sma_pilot.progress import OnProgress

_KIND = "pca"
_CHUNK_ROWS = 65_536


class PCAArm:
    """Principal components of the numeric channels; categorical ones are left out.

    The components come from the exact covariance, summed up in one pass over the train slice.
    A missing value enters as 0, its channel's centre, as it does in the neural arms. Of C
    channels at most C - 1 components are kept: with all of them every row would be usual.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._components = plan.arm(role, PCAPlan).components
        self._smoothing = plan.task.smoothing

    def check(self, dataset: PreparedDataset) -> None:
        """Every log has numeric channels, and that is all a PCA asks for."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`."""
        wanted = {"dataset": dataset.card.digest, "components": self._components}
        if is_fitted(folder, _KIND, wanted):
            return
        channels = len(dataset.card.numeric)
        total = torch.zeros(channels, dtype=torch.float64)
        products = torch.zeros(channels, channels, dtype=torch.float64)
        train = dataset.split("train")
        for start in range(0, train.rows, _CHUNK_ROWS):
            on_progress(f"fit {self.role}", start, train.rows)
            stop = min(start + _CHUNK_ROWS, train.rows)
            rows = _filled(train.read(start, stop).numeric).double()
            total += rows.sum(0)
            products += rows.T @ rows
        # Sums about 0 rather than about the mean lose no digits: rows are scaled to centre 0.
        mean = total / max(train.rows, 1)
        covariance = products / max(train.rows, 1) - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        kept = min(self._components, channels - 1)
        explained = values.flip(0).clamp_min(0)
        share = (explained[:kept].sum() / explained.sum().clamp_min(1e-30)).item()
        axes = vectors.flip(1)[:, :kept].T
        save_fit(
            folder,
            _KIND,
            {"fitted": wanted, "components": kept, "explained_variance": share},
            {"mean": mean.float(), "axes": axes.float()},
        )
        on_progress(f"fit {self.role}", train.rows, train.rows)

    def open(self, folder: Path) -> "PCAScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return PCAScorer(tensors["mean"], tensors["axes"], self._smoothing)


class PCAScorer(RowScorer):
    """Scores a row by its squared distance from its projection on the components.

    Parameters
    ----------
    mean : Tensor, float32 [C]
    axes : Tensor, float32 [components, C]
        Orthonormal rows.
    smoothing : int
        Span of the smoothing, in rows.
    """

    def __init__(self, mean: Tensor, axes: Tensor, smoothing: int) -> None:
        super().__init__(len(mean), smoothing=smoothing)
        self._mean = mean
        self._axes = axes

    @property
    def weight_bytes(self) -> int:
        """See `Scorer.weight_bytes`."""
        return self._mean.nbytes + self._axes.nbytes

    def _of_windows(self, windows: Tensor, categorical: Tensor | None) -> Tensor:
        rows = windows[..., -1, :]
        centred = _filled(rows) - self._mean
        usual = self._mean + (centred @ self._axes.T) @ self._axes
        return mean_squared_error(rows, usual)


def _filled(numeric: Tensor | None) -> Tensor:
    assert numeric is not None  # noqa: S101  (the plan asks for a numeric channel)
    return numeric.nan_to_num(0.0, 0.0, 0.0)
