"""The metrics of quality by name: which task has them, and which way is better."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sma_pilot.plan import TASKS_OF_METRIC, Plan

EVENT_RECALL = "event_recall"
AVERAGE_PRECISION = "average_precision"
VUS_PR = "vus_pr"
AFFILIATION_F1 = "affiliation_f1"
ACCURACY = "accuracy"
BALANCED_ACCURACY = "balanced_accuracy"
MACRO_F1 = "macro_f1"
BRIER = "brier"
MAE = "mae"
RMSE = "rmse"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What the judge needs to know of a metric.

    Attributes
    ----------
    words : str
        Its name in a sentence.
    higher_is_better : bool
    """

    words: str
    higher_is_better: bool = True


METRICS = {
    EVENT_RECALL: Metric(words="event recall"),
    AVERAGE_PRECISION: Metric(words="average precision"),
    VUS_PR: Metric(words="VUS-PR"),
    AFFILIATION_F1: Metric(words="affiliation F1"),
    ACCURACY: Metric(words="accuracy"),
    BALANCED_ACCURACY: Metric(words="balanced accuracy"),
    MACRO_F1: Metric(words="macro F1"),
    BRIER: Metric(words="Brier score", higher_is_better=False),
    MAE: Metric(words="mean absolute error", higher_is_better=False),
    RMSE: Metric(words="root mean squared error", higher_is_better=False),
}
# Cheap under thousands of resamples, so they have bounds whatever the headline is.
_ALWAYS_BOUNDED = (EVENT_RECALL, AVERAGE_PRECISION, ACCURACY)


class RowMetric(Protocol):
    """A metric of one arm on the judged rows, as a function of the weights of the time bins."""

    @property
    def carriers(self) -> NDArray[np.int64]:
        """Bins that can carry a loss, each at least once."""
        ...

    def __call__(self, bin_weights: NDArray[np.float64]) -> float:
        """Return the metric under weights [B]; NaN where none is left of what it measures."""
        ...

    def contributions(self, bins: int) -> NDArray[np.float64]:
        """Return what each bin [B] adds to the metric of equal weights, to first order."""
        ...


def metrics_of(plan: Plan) -> tuple[str, ...]:
    """Return the names of the metrics that the plan's task has."""
    kind = plan.task.kind
    return tuple(name for name in METRICS if kind in TASKS_OF_METRIC.get(name, (kind,)))


def bounded_metrics(plan: Plan) -> tuple[str, ...]:
    """Return those that are resampled: the headline, and of the cheap ones those of the task."""
    cheap = (name for name in _ALWAYS_BOUNDED if name in metrics_of(plan))
    return tuple(dict.fromkeys((*cheap, plan.quality.headline)))


def loss_of(metric: str, reference: float, challenger: float) -> float:
    """Return by how much the challenger is worse; negative for a gain."""
    return reference - challenger if METRICS[metric].higher_is_better else challenger - reference
