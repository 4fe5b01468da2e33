"""The other plain baseline of anomaly detection: distance from the nearest usual row.

Where PCA spans the usual by a plane, k-means marks it by points: a machine with a few modes of work
lies near one of them. With a window it is usual stretches that are marked, as in TSB-AD's KMeansAD.
"""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_pilot.arms.forecast_error import mean_squared_error
from sma_pilot.arms.row_scorer import RowScorer
from sma_pilot.arms.training_rows import sample_rows
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import PlanError
from sma_pilot.plan import KMeansPlan, Plan
from sma_pilot.progress import OnProgress

_KIND = "kmeans"


class KMeansArm:
    """k-means centres of the numeric channels; categorical ones are left out.

    A missing value enters the fit as 0, its channel's centre, as it does in the neural arms. A
    score is a mean over the values that are there.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._arm = plan.arm(role, KMeansPlan)
        self._seed = plan.seed
        self._threads = plan.replay.threads
        self._smoothing = plan.task.smoothing

    def check(self, dataset: PreparedDataset) -> None:
        """See `Arm.check`."""
        rows = dataset.split("train").rows
        if rows < self._arm.clusters:
            raise PlanError(
                f"arms.{self.role}.clusters: {self._arm.clusters} are asked for and the train "
                f"slice has {rows} rows"
            )

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`."""
        arm, stage = self._arm, f"fit {self.role}"
        wanted = {
            "dataset": dataset.card.digest,
            "seed": self._seed,
            **arm.model_dump(mode="json", include={"clusters", "window", "fit_rows"}),
        }
        if is_fitted(folder, _KIND, wanted):
            return
        train = dataset.split("train")
        sample = sample_rows(
            train,
            window=arm.window,
            most=arm.fit_rows,
            learns=False,
            seed=self._seed,
            stage=stage,
            on=on_progress,
        )
        rows = sample.windows.nan_to_num(0.0).flatten(1)
        # Rows that are all alike have fewer centres than were asked for.
        kept = min(arm.clusters, len(rows.unique(dim=0)))
        if kept == 0:
            raise PlanError(f"arms.{self.role}: no training row holds a value")
        centres = self._centres(rows, kept).unflatten(1, sample.windows.shape[1:])
        save_fit(folder, _KIND, {"fitted": wanted, "clusters": kept}, {"centres": centres})
        on_progress(stage, train.rows, train.rows)

    def _centres(self, rows: Tensor, clusters: int) -> Tensor:
        # Importing scikit-learn takes a second, and only fitting needs it.
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        # As many threads as the replay has: sums of floats depend on their number.
        with threadpool_limits(self._threads):
            model = KMeans(
                clusters,
                n_init=4,  # pyright: ignore[reportArgumentType]  (its stubs know "auto" alone)
                random_state=self._seed % 2**32,
            ).fit(rows.numpy())
        return torch.from_numpy(model.cluster_centers_).float()

    def open(self, folder: Path) -> "KMeansScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return KMeansScorer(tensors["centres"], self._smoothing)


class KMeansScorer(RowScorer):
    """Scores a window by its mean squared distance from the nearest centre.

    Parameters
    ----------
    centres : Tensor, float32 [K, W, C]
    smoothing : int
        Span of the smoothing, in rows.
    """

    def __init__(self, centres: Tensor, smoothing: int) -> None:
        _, window, channels = centres.shape
        super().__init__(channels, window=window, smoothing=smoothing)
        self._centres = centres.flatten(1)
        self._squares = self._centres.square()

    @property
    def weight_bytes(self) -> int:
        """See `Scorer.weight_bytes`."""
        return self._centres.nbytes + self._squares.nbytes

    def _of_windows(self, windows: Tensor, categorical: Tensor | None) -> Tensor:
        values = windows.flatten(-2)
        known = values.isfinite().to(values.dtype)
        filled = values.nan_to_num(0.0, 0.0, 0.0)
        # |x - c|^2 over what is known of x, less the part that all centres have in common.
        distance = known @ self._squares.T - 2 * (filled @ self._centres.T)
        nearest = self._centres[distance.argmin(-1)]
        error = mean_squared_error(values, nearest)
        return torch.where(windows[..., -1, :].isfinite().any(-1), error, torch.nan)
