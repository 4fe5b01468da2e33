"""What the linear baselines share: features of a row and of the short past behind it, weighted.

The features of a numeric channel are its value, its mean and its standard deviation over the last
16 rows; a categorical channel has one feature for each of its values.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from sma_core.dataset import Split
from sma_core.model import Inputs
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores

WINDOW = 16
CHUNK_ROWS = 16_384

Chunk = tuple[Tensor, Tensor | None, Tensor]
"""Numeric features float32 [T, 3 C], categorical values int32 [T, K], targets int32 [T]."""


def train_chunks(train: Split, chunk_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """Yield features, categorical values and targets of the train slice, so many rows at a time."""
    for _, first, last in train.sequences:
        tail: Tensor | None = None
        for start in range(first, last, chunk_rows):
            rows = train.read(start, min(start + chunk_rows, last))
            assert rows.target is not None  # noqa: S101  (the tasks with such a baseline have one)
            numeric = rows.numeric
            if numeric is None:
                numeric = torch.empty(len(rows.target), 0)
            before = no_rows(1, numeric.shape[1]) if tail is None else tail
            window = torch.cat([before, numeric[None]], 1)
            tail = window[:, 1 - WINDOW :]
            yield features(window)[0], rows.categorical, rows.target


def no_rows(batch: int, channels: int) -> Tensor:
    """Return the window before a first row: rows in which every channel is missing."""
    return torch.full((batch, WINDOW - 1, channels), torch.nan)


def features(window: Tensor) -> Tensor:
    """Value, rolling mean and rolling deviation of known values, float32 [B, T, 3 C].

    Parameters
    ----------
    window : Tensor, float32 [B, 15 + T, C]
        The rows, with the 15 before them.
    """
    batch, rows, channels = window.shape
    if not channels:
        return window.new_empty(batch, rows - WINDOW + 1, 0)
    columns = window.transpose(1, 2).double()
    known = columns.isfinite()
    values = torch.where(known, columns, 0.0)
    share = avg_pool1d(known.double(), WINDOW, 1).clamp_min(1e-9)
    mean = avg_pool1d(values, WINDOW, 1) / share
    square = avg_pool1d(values.square(), WINDOW, 1) / share
    deviation = (square - mean.square()).clamp_min_(0).sqrt_()
    now = values[..., WINDOW - 1 :]
    return torch.cat([now, mean, deviation], 1).transpose(1, 2).float()


@dataclass
class LinearState(TensorState):
    """The numeric values of the last 15 rows, float32 [B, 15, C]; NaN before the first row."""

    tail: Tensor


class LinearScorer:
    """Weighs the features of each row; what the sums mean is the subclass's matter.

    Parameters
    ----------
    numeric : Tensor, float32 [3 C, K]
        Weights of value, mean and deviation of each numeric channel, for each of K outputs.
    categorical : Tensor, float32 [sum of vocabularies, K]
        Weights of the values of each categorical channel, one channel after the other.
    vocabularies : Tensor, int64 [channels]
        Number of values of each categorical channel.
    bias : Tensor, float32 [K]
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

    def start(self, batch: int) -> LinearState:
        """See `Scorer.start`."""
        return LinearState(no_rows(batch, len(self._numeric) // 3))

    def score(self, inputs: Inputs, state: LinearState) -> Scores:
        """See `Scorer.score`."""
        outputs = self._bias.expand(inputs.batch, inputs.steps, -1)
        known = None
        if inputs.numeric is not None:
            window = torch.cat([state.tail, inputs.numeric], 1)
            state.tail = window[:, 1 - WINDOW :].clone()
            outputs = outputs + features(window) @ self._numeric
            known = inputs.numeric.isfinite().any(-1)
        if inputs.categorical is not None:
            outputs = outputs + self._categorical[inputs.categorical + self._first].sum(-2)
            known = None
        return self._scores(outputs, known)

    def step(self, inputs: Inputs, state: LinearState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        return self.score(inputs, state).score.item(), ()

    @abstractmethod
    def _scores(self, outputs: Tensor, known: Tensor | None) -> Scores:
        """Turn the sums [B, T, K] into scores; `known` [B, T] says which rows tell anything."""


def where_known(score: Tensor, known: Tensor | None) -> Tensor:
    """Return the scores, NaN for a row of which nothing is known; all are where `known` is None."""
    return score if known is None else torch.where(known, score, torch.nan)
