"""How a sequence model tells classes: at each row, by all that it has seen of the unit so far."""

from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.neural_scorer import ClassState, NeuralScorer


class ClassificationScorer(NeuralScorer):
    """Scores a row by the probability of the class that is told.

    The head of the model has one output for each class. A row of which nothing is known is told by
    those before it.
    """

    def start(self, batch: int) -> ClassState:
        """See `Scorer.start`."""
        return ClassState(self._model.init_state(batch))

    def score(self, inputs: Inputs, state: ClassState) -> Scores:
        """See `Scorer.score`."""
        outputs = self._model(inputs.to(self._device), state.model)
        logits = self._finite(outputs.prediction)
        return Scores.of_classes(logits.float().softmax(-1).cpu(), outputs.decisions)

    def step(self, inputs: Inputs, state: ClassState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        outputs = self._model.step(inputs.to(self._device), state.model)
        # Both are what a caller takes from a step, and the service time is that of both.
        probability, _ = outputs.prediction.float().softmax(-1).max(-1)
        return probability.item(), outputs.decisions
