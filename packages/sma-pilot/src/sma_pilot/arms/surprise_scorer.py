"""The score of a session of events: the least likely step that it has taken so far.

At each event the model gives a probability to every event that may come next. A usual session takes
likely steps; one step that hardly ever follows is what an operator would want to see, however many
usual ones surround it. So a row scores the largest -log p of its session up to that row, and the
last row of a session scores the whole. M. Du, F. Li, G. Zheng, V. Srikumar, "DeepLog", CCS 2017,
asks in the same way whether each event is among the likely ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.model import Inputs, SequenceModel, State
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.neural_scorer import NeuralScorer


@dataclass
class SurpriseState(TensorState):
    """State along sessions.

    Parameters
    ----------
    model : State
    expected : Tensor, float32 [B, V]
        Log-probability of each event as the next one; NaN before the first.
    largest : Tensor, float32 [B]
        Largest surprise so far; -inf before there is one.
    """

    model: State
    expected: Tensor
    largest: Tensor


class SurpriseScorer(NeuralScorer):
    """Scores a row by the largest surprise of its session up to it; the first row by nothing.

    Parameters
    ----------
    model : SequenceModel
        With one categorical channel, and a head that tells its next value.
    """

    def __init__(self, model: SequenceModel) -> None:
        super().__init__(model)
        self._events = model.config.head.outputs

    def start(self, batch: int) -> SurpriseState:
        """See `Scorer.start`."""
        return SurpriseState(
            model=self._model.init_state(batch),
            expected=torch.full((batch, self._events), torch.nan, device=self._device),
            largest=torch.full((batch,), -torch.inf, device=self._device),
        )

    def score(self, inputs: Inputs, state: SurpriseState) -> Scores:
        """See `Scorer.score`."""
        inputs = inputs.to(self._device)
        outputs = self._model(inputs, state.model)
        score = self._surprise(inputs, outputs.prediction, state)
        return Scores(score.cpu(), outputs.decisions)

    def step(self, inputs: Inputs, state: SurpriseState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        inputs = inputs.to(self._device)
        outputs = self._model.step(inputs, state.model)
        return self._surprise(inputs, outputs.prediction, state).item(), outputs.decisions

    def _surprise(self, inputs: Inputs, logits: Tensor, state: SurpriseState) -> Tensor:
        """Largest surprise [B, T] up to each row; NaN where there was none yet."""
        assert inputs.categorical is not None  # noqa: S101  (the task has event ids)
        announced = self._finite(logits).float().log_softmax(-1)
        expected = torch.cat([state.expected[:, None], announced[:, :-1]], 1)
        state.expected = announced[:, -1].clone()
        surprise = -expected.gather(-1, inputs.categorical[..., :1]).squeeze(-1)
        surprise = torch.where(surprise.isnan(), -torch.inf, surprise)
        largest = torch.maximum(surprise.cummax(1).values, state.largest[:, None])
        state.largest = largest[:, -1].clone()
        return torch.where(largest.isinf(), torch.nan, largest)
