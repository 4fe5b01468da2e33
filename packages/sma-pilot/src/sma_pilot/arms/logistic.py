"""The plain baseline of alarms and classes: logistic regression on a row and the short past."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sma_core.dataset import PreparedDataset, Split
from sma_pilot.arms.base import Scores
from sma_pilot.arms.class_regression import probabilities, regress
from sma_pilot.arms.linear import CHUNK_ROWS, LinearScorer, train_chunks, where_known
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress

_KIND = "logistic"
# Rows of each class that are fitted on; past this a linear model of a few hundred weights gains
# nothing, and the sample fits in memory whatever the length of the log.
_ROWS_PER_CLASS = 50_000


class LogisticArm:
    """Probability of each class from the features of `sma_pilot.arms.linear`.

    The classes are those of `classification`, or "an event within the horizon" and its opposite.
    They are sampled apart and weighted back, so that the probability is that of the log and not of
    the sample.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._seed = plan.seed
        self._by_class = plan.task.by_class

    def check(self, dataset: PreparedDataset) -> None:
        """Whatever the channels, a logistic regression can be built on them."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; PlanError when the train slice lacks one of the classes."""
        wanted = {"dataset": dataset.card.digest, "seed": self._seed}
        if is_fitted(folder, _KIND, wanted):
            return
        stage = f"fit {self.role}"
        train = dataset.split("train")
        vocabularies = [len(channel.vocabulary) for channel in dataset.card.categorical]
        rates = self._sampling_rates(train, dataset.card.classes)
        generator = torch.Generator().manual_seed(self._seed)
        parts: list[tuple[Tensor, Tensor | None, Tensor]] = []
        done = 0
        for numeric, categorical, target in train_chunks(train):
            on_progress(stage, done, train.rows)
            done += len(target)
            rate = torch.where(target < 0, 0.0, rates[target.clamp_min(0)])
            kept = torch.rand(len(target), generator=generator, dtype=torch.float64) < rate
            chosen = None if categorical is None else categorical[kept]
            parts.append((numeric[kept], chosen, target[kept]))
        features = torch.cat([numeric for numeric, _, _ in parts]).double()
        target = torch.cat([target for _, _, target in parts])
        weight = 1.0 / rates[target]
        center = features.mean(0)
        scale = (features - center).square().mean(0).sqrt().clamp_min(1e-6)
        values = [categorical for _, categorical, _ in parts if categorical is not None]
        together = torch.cat(values) if values else None
        design = _design((features - center) / scale, together, vocabularies)
        weights, bias, converged = regress(design, target, weight)
        dense = weights[: len(center)] / scale[:, None]
        bias = bias - (dense * center[:, None]).sum(0)
        tensors = {
            "numeric": dense.float(),
            "categorical": weights[len(center) :].float(),
            "vocabularies": torch.tensor(vocabularies, dtype=torch.int64),
            "bias": bias.float(),
        }
        save_fit(folder, _KIND, {"fitted": wanted, "converged": converged}, tensors)
        on_progress(stage, train.rows, train.rows)

    def _sampling_rates(self, train: Split, names: tuple[str, ...]) -> Tensor:
        """Share of the rows of each of K classes to fit on, float64 [K]."""
        counts = torch.zeros(len(names), dtype=torch.int64)
        for start in range(0, train.rows, CHUNK_ROWS):
            target = train.read(start, min(start + CHUNK_ROWS, train.rows)).target
            if target is not None:
                counts += torch.bincount(target[target >= 0], minlength=len(names))
        if (counts == 0).any():
            raise PlanError(
                f"arms.{self.role}: the train slice has no row of the class "
                f"{names[int(counts.argmin())]!r}, so nothing can be learned; move "
                f"slices.validation_from{'' if self._by_class else ' or change task.horizon'}"
            )
        return (_ROWS_PER_CLASS / counts.double()).clamp_max(1.0)

    def open(self, folder: Path) -> LinearScorer:
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return (ClassLogisticScorer if self._by_class else LogisticScorer)(**tensors)


def _design(features: Tensor, categorical: Tensor | None, vocabularies: list[int]) -> Any:
    """Put features [N, F] and the values of categorical channels, one column each, together."""
    from scipy import sparse
    from sklearn.preprocessing import OneHotEncoder

    if categorical is None:
        return features.numpy()
    values = [np.arange(size) for size in vocabularies]
    encoder = OneHotEncoder(categories=values)  # pyright: ignore[reportArgumentType]
    one_hot = encoder.fit_transform(categorical.numpy())
    return sparse.hstack([sparse.csr_matrix(features.numpy()), one_hot]).tocsr()


class LogisticScorer(LinearScorer):
    """Scores a row by the fitted probability of an event within the horizon."""

    def _scores(self, outputs: Tensor, known: Tensor | None) -> Scores:
        return Scores(where_known(outputs[..., 0].sigmoid(), known))


class ClassLogisticScorer(LinearScorer):
    """Tells the class of a row with the fitted probabilities."""

    def _scores(self, outputs: Tensor, known: Tensor | None) -> Scores:
        return Scores.of_classes(probabilities(outputs))
