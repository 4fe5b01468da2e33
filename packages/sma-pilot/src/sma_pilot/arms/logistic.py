"""The plain baseline of alarms: logistic regression on a row and the short past behind it."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from sma_core.dataset import PreparedDataset, Split
from sma_core.model import Inputs
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress

_KIND = "logistic"
_WINDOW = 16
_CHUNK_ROWS = 16_384
# Rows of each class that are fitted on; past this a linear model of a few hundred weights gains
# nothing, and the sample fits in memory whatever the length of the log.
_ROWS_PER_CLASS = 50_000


class LogisticArm:
    """P(event within the horizon) from each channel's value, and its mean and deviation of late.

    The features of a numeric channel are its value, its mean and its standard deviation over the
    last 16 rows; a categorical channel has one weight for each value. Classes are sampled apart
    and weighted back, so that the probability is that of the log and not of the sample.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._seed = plan.seed

    def check(self, dataset: PreparedDataset) -> None:
        """Whatever the channels, a logistic regression can be built on them."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; PlanError when the train slice lacks one of the two classes."""
        wanted = {"dataset": dataset.card.digest, "seed": self._seed}
        if is_fitted(folder, _KIND, wanted):
            return
        stage = f"fit {self.role}"
        train = dataset.split("train")
        vocabularies = [len(channel.vocabulary) for channel in dataset.card.categorical]
        rates = self._sampling_rates(train)
        generator = torch.Generator().manual_seed(self._seed)
        parts: list[tuple[Tensor, Tensor | None, Tensor]] = []
        done = 0
        for numeric, categorical, target in _chunks(train):
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
        scale = features.std(0, correction=0).clamp_min(1e-6)
        values = [categorical for _, categorical, _ in parts if categorical is not None]
        weights, bias, converged = _regress(
            (features - center) / scale,
            torch.cat(values) if values else None,
            vocabularies,
            target,
            weight,
        )
        dense = weights[: len(center)] / scale
        bias -= (dense * center).sum()
        tensors = {
            "numeric": dense.float(),
            "categorical": weights[len(center) :].float(),
            "vocabularies": torch.tensor(vocabularies, dtype=torch.int64),
            "bias": bias.float().reshape(1),
        }
        save_fit(folder, _KIND, {"fitted": wanted, "converged": converged}, tensors)
        on_progress(stage, train.rows, train.rows)

    def _sampling_rates(self, train: Split) -> Tensor:
        """Share of the rows of each class to fit on, float64 [2]."""
        counts = torch.zeros(2, dtype=torch.int64)
        for start in range(0, train.rows, _CHUNK_ROWS):
            target = train.read(start, min(start + _CHUNK_ROWS, train.rows)).target
            if target is not None:
                counts += torch.bincount(target[target >= 0], minlength=2)[:2]
        if (counts == 0).any():
            lacking = "within the horizon of an event" if counts[1] == 0 else "far from any event"
            raise PlanError(
                f"arms.{self.role}: the train slice has no row {lacking}, so nothing can be "
                "learned; move slices.validation_from or change task.horizon"
            )
        return (_ROWS_PER_CLASS / counts.double()).clamp_max(1.0)

    def open(self, folder: Path) -> "LogisticScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return LogisticScorer(**tensors)


def _chunks(train: Split) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Features, categorical values and targets of the train slice, a bounded chunk at a time."""
    for _, first, last in train.sequences:
        tail: Tensor | None = None
        for start in range(first, last, _CHUNK_ROWS):
            rows = train.read(start, min(start + _CHUNK_ROWS, last))
            assert rows.numeric is not None  # noqa: S101  (the plan asks for a numeric channel)
            assert rows.target is not None  # noqa: S101  (counted before)
            numeric = rows.numeric[None]
            window = torch.cat([_no_rows(1, numeric) if tail is None else tail, numeric], 1)
            tail = window[:, 1 - _WINDOW :]
            yield _features(window)[0], rows.categorical, rows.target


def _no_rows(batch: int, numeric: Tensor) -> Tensor:
    """Return the window before a first row: rows in which every channel is missing."""
    return numeric.new_full((batch, _WINDOW - 1, numeric.shape[2]), torch.nan)


def _features(window: Tensor) -> Tensor:
    """Value, rolling mean and rolling deviation of known values, float32 [B, T, 3 C].

    Parameters
    ----------
    window : Tensor, float32 [B, 15 + T, C]
        The rows, with the 15 before them.
    """
    columns = window.transpose(1, 2).double()
    known = columns.isfinite()
    values = torch.where(known, columns, 0.0)
    share = avg_pool1d(known.double(), _WINDOW, 1).clamp_min(1e-9)
    mean = avg_pool1d(values, _WINDOW, 1) / share
    square = avg_pool1d(values.square(), _WINDOW, 1) / share
    deviation = (square - mean.square()).clamp_min_(0).sqrt_()
    now = values[..., _WINDOW - 1 :]
    return torch.cat([now, mean, deviation], 1).transpose(1, 2).float()


def _regress(
    features: Tensor,
    categorical: Tensor | None,
    vocabularies: list[int],
    target: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, bool]:
    """Fit the weights, those of the numeric features first; tell whether the fit converged."""
    # Importing scikit-learn takes a second, and only fitting needs it.
    from scipy import sparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    design = features.numpy()
    if categorical is not None:
        values = [np.arange(size) for size in vocabularies]
        encoder = OneHotEncoder(categories=values)  # pyright: ignore[reportArgumentType]
        one_hot = encoder.fit_transform(categorical.numpy())
        design = sparse.hstack([sparse.csr_matrix(design), one_hot]).tocsr()
    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(design, target.numpy(), sample_weight=(weight / weight.mean()).numpy())
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weights, bias = np.asarray(model.coef_)[0], np.asarray(model.intercept_)[0]
    return torch.from_numpy(weights), torch.tensor(bias), converged


@dataclass
class LogisticState(TensorState):
    """The numeric values of the last 15 rows, float32 [B, 15, C]; NaN before the first row."""

    tail: Tensor


class LogisticScorer:
    """Scores a row by the fitted probability of an event within the horizon.

    Parameters
    ----------
    numeric : Tensor, float32 [3 C]
        Weights of value, mean and deviation of each numeric channel.
    categorical : Tensor, float32 [sum of vocabularies]
        Weights of the values of each categorical channel, one channel after the other.
    vocabularies : Tensor, int64 [K]
        Number of values of each categorical channel.
    bias : Tensor, float32 [1]
    """

    submodules: tuple[str, ...] = ()

    def __init__(
        self, numeric: Tensor, categorical: Tensor, vocabularies: Tensor, bias: Tensor
    ) -> None:
        self._numeric = numeric
        self._categorical = categorical
        self._first = vocabularies.cumsum(0) - vocabularies
        self._bias = bias
        tensors = (numeric, categorical, self._first, bias)
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors)

    def start(self, batch: int) -> LogisticState:
        """See `Scorer.start`."""
        channels = self._numeric.new_empty(batch, 1, len(self._numeric) // 3)
        return LogisticState(_no_rows(batch, channels))

    def score(self, inputs: Inputs, state: LogisticState) -> Scores:
        """See `Scorer.score`."""
        assert inputs.numeric is not None  # noqa: S101  (the plan asks for a numeric channel)
        window = torch.cat([state.tail, inputs.numeric], 1)
        state.tail = window[:, 1 - _WINDOW :].clone()
        logit = _features(window) @ self._numeric + self._bias
        if inputs.categorical is None:
            known = inputs.numeric.isfinite().any(-1)
            return Scores(torch.where(known, logit.sigmoid(), torch.nan))
        logit += self._categorical[inputs.categorical + self._first].sum(-1)
        return Scores(logit.sigmoid())

    def step(self, inputs: Inputs, state: LogisticState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        return self.score(inputs, state).score.item(), ()
