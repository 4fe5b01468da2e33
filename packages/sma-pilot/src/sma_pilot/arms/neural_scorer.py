"""How a sequence model scores rows: one code path for every architecture and policy.

The dense twin and the sparse candidate run the same code; only what the router decides differs,
so a difference in time between them is the price of the steps that were not skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.config import ModelConfig
from sma_core.model import Inputs, SequenceModel, State
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.forecast_error import Smoother, mean_squared_error
from sma_pilot.errors import RunError


class NeuralScorer:
    """What the scorers of both tasks share: the model and what it weighs.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode, on the device that scores.
    """

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        tensors = [*model.parameters(), *model.buffers()]
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors)
        self._device = tensors[0].device
        pool = model.config.pool if isinstance(model.config, ModelConfig) else ()
        kinds = [member.kind for member in pool]
        # Two of a kind in the pool are told apart by their place.
        self.submodules = tuple(
            kind if kinds.count(kind) == 1 else f"{kind} {place}"
            for place, kind in enumerate(kinds)
        )

    def _finite(self, prediction: Tensor) -> Tensor:
        if not prediction.isfinite().all():
            raise RunError(
                "the model predicts values that are no numbers; its fit diverged: lower "
                "training.learning_rate and fit again"
            )
        return prediction


@dataclass
class ForecastState(TensorState):
    """State of a forecasting arm.

    Parameters
    ----------
    model : State
    expected : Tensor, float [B, C]
        Prediction of the next row; NaN before the first.
    average : Tensor, float64 [B]
        Smoothed error.
    """

    model: State
    expected: Tensor
    average: Tensor


class ForecastScorer(NeuralScorer):
    """Scores a row by how far it lies from what the rows before it announced.

    Parameters
    ----------
    model : SequenceModel
        With a forecast head.
    smoothing : int
        Span of the smoothing, in rows.
    """

    def __init__(self, model: SequenceModel, smoothing: int) -> None:
        super().__init__(model)
        self._smoother = Smoother(smoothing)

    def start(self, batch: int) -> ForecastState:
        """See `Scorer.start`."""
        channels = self._model.config.head.outputs
        return ForecastState(
            model=self._model.init_state(batch),
            expected=torch.full((batch, channels), torch.nan, device=self._device),
            average=self._smoother.start(batch),
        )

    def score(self, inputs: Inputs, state: ForecastState) -> Scores:
        """See `Scorer.score`."""
        inputs = inputs.to(self._device)
        outputs = self._model(inputs, state.model)
        prediction = self._finite(outputs.prediction)
        expected = torch.cat([state.expected[:, None], prediction[:, :-1]], 1)
        state.expected = prediction[:, -1].clone()
        assert inputs.numeric is not None  # noqa: S101  (a forecast head has numeric channels)
        error = mean_squared_error(inputs.numeric, expected).cpu()
        return Scores(self._smoother.chunk(error, state.average), outputs.decisions)

    def step(self, inputs: Inputs, state: ForecastState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        inputs = inputs.to(self._device)
        outputs = self._model.step(inputs, state.model)
        assert inputs.numeric is not None  # noqa: S101  (a forecast head has numeric channels)
        error = mean_squared_error(inputs.numeric[:, 0], state.expected)
        state.expected = outputs.prediction[:, 0]
        return self._smoother.step(error.item(), state.average), outputs.decisions


@dataclass
class ClassState(TensorState):
    """State of an arm that tells classes: the model's own."""

    model: State


class ClassScorer(NeuralScorer):
    """Scores a row by the mean of its classes' scores under the model's probabilities.

    Parameters
    ----------
    model : SequenceModel
        With a head that tells classes.
    scores : sequence of float
        What certainty of each class scores: 0 and 1 give the probability of the second.
    """

    def __init__(self, model: SequenceModel, scores: Sequence[float]) -> None:
        super().__init__(model)
        self._scores = torch.tensor(scores, device=self._device)

    def start(self, batch: int) -> ClassState:
        """See `Scorer.start`."""
        return ClassState(self._model.init_state(batch))

    def score(self, inputs: Inputs, state: ClassState) -> Scores:
        """See `Scorer.score`."""
        inputs = inputs.to(self._device)
        outputs = self._model(inputs, state.model)
        self._finite(outputs.prediction)
        return Scores(self._expected(inputs, outputs.prediction).cpu(), outputs.decisions)

    def step(self, inputs: Inputs, state: ClassState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        inputs = inputs.to(self._device)
        outputs = self._model.step(inputs, state.model)
        return self._expected(inputs, outputs.prediction).item(), outputs.decisions

    def _expected(self, inputs: Inputs, logits: Tensor) -> Tensor:
        """Mean score [B, T]; NaN for a row that tells nothing, all its channels being missing."""
        mean = (logits.softmax(-1) * self._scores).sum(-1)
        if inputs.categorical is not None or inputs.numeric is None:
            return mean
        return torch.where(inputs.numeric.isfinite().any(-1), mean, torch.nan)
