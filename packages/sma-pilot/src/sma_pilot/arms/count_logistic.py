"""The plain baseline of classes of sessions: logistic regression on how often each value occurs."""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.class_regression import probabilities, regress
from sma_pilot.arms.session_counts import CountState, SessionCounter, read_sessions
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress

_KIND = "count_logistic"


class CountLogisticArm:
    """Probability of each class from log(1 + count) of the values of a whole session.

    Fitted on the training sessions of a known class, at their last row.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role

    def check(self, dataset: PreparedDataset) -> None:
        """Nothing is left to check: the plan sees to it that there is something to count."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; PlanError when no training session ends with a class."""
        wanted = {"dataset": dataset.card.digest}
        if is_fitted(folder, _KIND, wanted):
            return
        train = dataset.split("train")
        vocabularies = [len(channel.vocabulary) for channel in dataset.card.categorical]
        points, targets, done = [], [], 0
        for read in read_sessions(train, vocabularies):
            on_progress(f"fit {self.role}", done, train.rows)
            done += read.rows
            points.append(read.points[read.target >= 0])
            targets.append(read.target[read.target >= 0])
        target = torch.cat(targets)
        counts = torch.bincount(target, minlength=len(dataset.card.classes))
        if (counts == 0).any():
            lacking = dataset.card.classes[int(counts.argmin())]
            raise PlanError(
                f"arms.{self.role}: no training session is of the class {lacking!r}, so nothing "
                "can be learned; move slices.validation_from"
            )
        weights, bias, converged = regress(
            torch.cat(points).numpy(), target, torch.ones(len(target), dtype=torch.float64)
        )
        tensors = {
            "weights": weights.float(),
            "bias": bias.float(),
            "vocabularies": torch.tensor(vocabularies, dtype=torch.int64),
        }
        save_fit(folder, _KIND, {"fitted": wanted, "converged": converged}, tensors)
        on_progress(f"fit {self.role}", train.rows, train.rows)

    def open(self, folder: Path) -> "CountLogisticScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return CountLogisticScorer(**tensors)


class CountLogisticScorer:
    """Tells the class of a session from its counts up to each row.

    Parameters
    ----------
    weights : Tensor, float32 [V, K]
    bias : Tensor, float32 [K]
    vocabularies : Tensor, int64 [channels]
        Number of values of each categorical channel; V in all.
    """

    submodules: tuple[str, ...] = ()

    def __init__(self, weights: Tensor, bias: Tensor, vocabularies: Tensor) -> None:
        self._weights = weights
        self._bias = bias
        self._counter = SessionCounter(vocabularies.tolist())
        self.weight_bytes = weights.nbytes + bias.nbytes

    def start(self, batch: int) -> CountState:
        """See `Scorer.start`."""
        return self._counter.start(batch)

    def score(self, inputs: Inputs, state: CountState) -> Scores:
        """See `Scorer.score`."""
        sums = self._counter.points(inputs, state) @ self._weights + self._bias
        return Scores.of_classes(probabilities(sums))

    def step(self, inputs: Inputs, state: CountState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        return self.score(inputs, state).score.item(), ()
