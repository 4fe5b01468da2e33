"""How an estimator of scikit-learn scores: as an outlier detector, a classifier or a regressor."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from sma_core.dataset import DatasetCard
from sma_pilot.arms.native_threads import hold_threads
from sma_pilot.arms.row_scorer import RowScorer, tells_something
from sma_pilot.errors import RunError
from sma_pilot.plan import Task
from sma_pilot.targets import class_scores

Answer = Literal["outliers", "classes", "scores"]
_LARGEST = float(np.finfo(np.float32).max)


def answer_of(model: Any, task: Task) -> Answer | None:
    """Return what an estimator, fitted or not, can tell of the task; None: nothing."""
    from sklearn.base import is_classifier, is_regressor

    if task.horizon is None:
        return "outliers" if hasattr(model, "score_samples") else None
    if is_classifier(model) and hasattr(model, "predict_proba"):
        return "classes"
    return "scores" if is_regressor(model) else None


class Design:
    """Turns windows of rows into the design matrix of an estimator, [N, W C + all categories].

    The columns are the numeric channels of the oldest row of the window, then those of the next,
    ..., those of the present row; then one column for each value of each categorical channel of the
    present row. A missing number enters as its channel's centre.

    Parameters
    ----------
    card : DatasetCard
    window : int
        W.
    in_log_units : bool
        Whether numbers go in as the log has them, and not scaled.
    """

    def __init__(self, card: DatasetCard, window: int, *, in_log_units: bool = False) -> None:
        self.channels = len(card.numeric)
        self.window = window
        self._vocabularies = [len(channel.vocabulary) for channel in card.categorical]
        self._center, self._scale = None, None
        if in_log_units:
            self._center, self._scale = log_units(card)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.window * self.channels + sum(self._vocabularies)

    def __call__(self, windows: Tensor, categorical: Tensor | None) -> NDArray[np.float64]:
        """Return the matrix of windows [N, W, C] with categories [N, K]."""
        values = windows.double().nan_to_num(0.0, 0.0, 0.0)
        if self._center is not None and self._scale is not None:
            values = values * self._scale + self._center
        parts = [values.flatten(1)]
        if categorical is not None:
            codes = zip(categorical.unbind(-1), self._vocabularies, strict=True)
            parts += [one_hot(code, size).double() for code, size in codes]
        return torch.cat(parts, 1).numpy()


def log_units(card: DatasetCard) -> tuple[Tensor, Tensor]:
    """Return centre c and scale s of each numeric channel, float64 [C]: value = scaled * s + c.

    Values beyond 10 scales were cut there when the data set was prepared.
    """
    center = torch.tensor([channel.center for channel in card.numeric], dtype=torch.float64)
    scale = torch.tensor([channel.scale for channel in card.numeric], dtype=torch.float64)
    return center, scale


class EstimatorScorer(RowScorer):
    """Scores rows by what a fitted estimator says of them.

    Parameters
    ----------
    model
        The estimator.
    design : Design
    task : Task
    weight_bytes : int
        Of its arrays.
    threads : int
        That its native code may use.
    """

    def __init__(
        self, model: Any, design: Design, task: Task, *, weight_bytes: int, threads: int
    ) -> None:
        smoothing = task.smoothing if task.horizon is None else 1
        super().__init__(design.channels, window=design.window, smoothing=smoothing)
        self._design = design
        self._answer = _scored_by(model, task)
        self._weight_bytes = weight_bytes
        hold_threads(self, threads)

    @property
    def weight_bytes(self) -> int:
        """See `Scorer.weight_bytes`."""
        return self._weight_bytes

    def _of_windows(self, windows: Tensor, categorical: Tensor | None) -> Tensor:
        rows = windows.flatten(0, 1)
        codes = None if categorical is None else categorical.flatten(0, 1)
        score = np.asarray(self._answer(self._design(rows, codes)), dtype=np.float64)
        if np.isnan(score).any():
            raise RunError("the estimator answers with values that are no numbers")
        # A density of zero is an anomaly without bound; float32 has one.
        score = torch.from_numpy(score.clip(-_LARGEST, _LARGEST)).float()
        known = tells_something(windows, categorical)
        return torch.where(known, score.view(known.shape), torch.nan)


def _scored_by(model: Any, task: Task) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    match answer_of(model, task):
        case "outliers":
            return lambda rows: -model.score_samples(rows)
        case "classes":
            weights = _weights(class_scores(task), model.classes_)
            return lambda rows: model.predict_proba(rows) @ weights
        case _:
            return lambda rows: np.clip(model.predict(rows), 0.0, 1.0)


def _weights(scores: Sequence[float], classes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the score that certainty of each class has, for the classes that were learned."""
    return np.array([scores[int(number)] for number in classes])
