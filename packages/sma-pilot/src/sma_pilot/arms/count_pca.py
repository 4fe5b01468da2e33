"""The plain baseline of sessions: how often each event occurs, held against what is usual.

The counts of a session's events are one point for each session. Principal components of the usual
ones span a plane; what lies beside it is the score [1]_. Order is not looked at, and on public
logs of sessions that is hard to beat.

References
----------
.. [1] W. Xu, L. Huang, A. Fox, D. Patterson, M. I. Jordan, "Detecting large-scale system problems
   by mining console logs", SOSP 2009.
"""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.session_counts import CountState, SessionCounter, read_sessions
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import PlanError
from sma_pilot.plan import CountPCAPlan, Plan
from sma_pilot.progress import OnProgress

_KIND = "count_pca"
_EXPLAINED = 0.95
"""Share of the variance that the kept components explain, as in [1]_."""


class CountPCAArm:
    """Principal components of log(1 + count) of each event of a session.

    Fitted on the training sessions that hold no row labelled as an anomaly. As many components are
    kept as explain 95 % of the variance, at most `components` of the plan.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._components = plan.arm(role, CountPCAPlan).components

    def check(self, dataset: PreparedDataset) -> None:
        """Sessions have event ids, and that is all that counting asks for."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; PlanError when every training session is labelled as an anomaly."""
        wanted = {"dataset": dataset.card.digest, "components": self._components}
        if is_fitted(folder, _KIND, wanted):
            return
        train = dataset.split("train")
        events = len(dataset.card.categorical[0].vocabulary)
        total = torch.zeros(events, dtype=torch.float64)
        products = torch.zeros(events, events, dtype=torch.float64)
        sessions = done = 0
        for read in read_sessions(train, [events]):
            on_progress(f"fit {self.role}", done, train.rows)
            done += read.rows
            points = read.points[~read.unusual]
            total += points.sum(0)
            products += points.T @ points
            sessions += len(points)
        if not sessions:
            raise PlanError(
                f"arms.{self.role}: every training session is labelled as an anomaly, so nothing "
                "tells what is usual; move slices.validation_from"
            )
        mean = total / sessions
        values, vectors = torch.linalg.eigh(products / sessions - torch.outer(mean, mean))
        explained = values.flip(0).clamp_min(0)
        share = explained.cumsum(0) / explained.sum().clamp_min(1e-30)
        # Rounding gives directions without any variance a little: none of them may be kept, or
        # an event that training has not would lie within the plane.
        useful = int((explained > 1e-9 * explained[0].clamp_min(1e-30)).sum())
        enough = int((share < _EXPLAINED).sum()) + 1
        kept = min(self._components, enough, useful)
        save_fit(
            folder,
            _KIND,
            {
                "fitted": wanted,
                "sessions": sessions,
                "components": kept,
                "explained_variance": float(share[kept - 1]) if kept else 0.0,
            },
            {"mean": mean.float(), "axes": vectors.flip(1)[:, :kept].T.float().contiguous()},
        )
        on_progress(f"fit {self.role}", train.rows, train.rows)

    def open(self, folder: Path) -> "CountPCAScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return CountPCAScorer(**tensors)


class CountPCAScorer:
    """Scores a row by how far the counts of its session so far lie from the usual plane.

    Parameters
    ----------
    mean : Tensor, float32 [V]
    axes : Tensor, float32 [components, V]
        Orthonormal rows.
    """

    submodules: tuple[str, ...] = ()

    def __init__(self, mean: Tensor, axes: Tensor) -> None:
        self._mean = mean
        self._axes = axes
        self._counter = SessionCounter([len(mean)])
        self.weight_bytes = mean.nbytes + axes.nbytes

    def start(self, batch: int) -> CountState:
        """See `Scorer.start`."""
        return self._counter.start(batch)

    def score(self, inputs: Inputs, state: CountState) -> Scores:
        """See `Scorer.score`."""
        centred = self._counter.points(inputs, state) - self._mean
        beside = centred - (centred @ self._axes.T) @ self._axes
        return Scores(beside.square().sum(-1))

    def step(self, inputs: Inputs, state: CountState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        return self.score(inputs, state).score.item(), ()
