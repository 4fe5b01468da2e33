"""What an arm is: it fits on the train slice, and opens a scorer from the folder it left.

Every arm is fed through the same two calls, `Scorer.score` for many rows of several sequences and
`Scorer.step` for one event, so that whatever differs between two arms is the arm and not the way
it is driven.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sma_core.dataset import PreparedDataset
from sma_core.model import Inputs
from sma_core.routing.decision import RoutingDecision
from sma_pilot.progress import OnProgress

Decisions = tuple[RoutingDecision, ...]


@dataclass(frozen=True)
class Scores:
    """Scores of a chunk.

    Parameters
    ----------
    score : Tensor, float32 [B, T], on the CPU
        Larger is more anomalous; NaN where the arm gives no score.
    decisions : tuple of RoutingDecision
        One per layer, each [B, T, M]; empty for an arm that does not route.
    classes : Tensor, float32 [B, T, K], on the CPU, optional
        Probability of each class, where classes are told; the score is the largest one.
    """

    score: Tensor
    decisions: Decisions = ()
    classes: Tensor | None = None

    @classmethod
    def of_classes(cls, probability: Tensor, decisions: Decisions = ()) -> "Scores":
        """Return the scores of an arm that tells classes, from their probabilities [B, T, K]."""
        return cls(probability.amax(-1), decisions, probability)


class ScorerState(Protocol):
    """What a scorer carries along a batch of sequences."""

    @property
    def nbytes(self) -> int:
        """Bytes of all sequences together."""
        ...

    def select(self, index: Tensor) -> Any:
        """Return a copy of the given sequences' states, in that order."""
        ...

    def put(self, index: Tensor, rows: Any) -> None:
        """Overwrite the given sequences' states with those of another state of this kind."""
        ...


class Scorer(Protocol):
    """A fitted arm, ready to score. Calls run under ``torch.inference_mode``."""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the fitted parameters and constants, as they lie in memory; None: unknown."""
        ...

    @property
    def submodules(self) -> tuple[str, ...]:
        """Names of the M sub-modules that each layer routes to; empty for an arm without routes."""
        ...

    def start(self, batch: int) -> Any:
        """Return the state of `batch` sequences before their first row."""
        ...

    def score(self, inputs: Inputs, state: Any) -> Scores:
        """Score the next T rows of B sequences, all of them valid, and bring `state` up to date.

        Parameters
        ----------
        inputs : Inputs
            Rows on the CPU; moving them elsewhere is part of scoring.
        state
            Made by `start` or `select`.
        """
        ...

    def step(self, inputs: Inputs, state: Any) -> tuple[float, Decisions]:
        """Score one event, B = T = 1; the same number as `score` up to rounding."""
        ...


class Arm(Protocol):
    """A competitor in the role that the plan gives it."""

    role: str

    def check(self, dataset: PreparedDataset) -> None:
        """Raise PlanError if what the plan asks of this arm cannot be built on such data."""
        ...

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """Fit on the train slice and leave all that `open` needs in `folder`.

        A finished fit of the same data and settings is kept as it is.
        """
        ...

    def open(self, folder: Path) -> Scorer:
        """Load what `fit` left.

        Raises
        ------
        RunError, sma_core.CheckpointError
            The folder is absent, incomplete or damaged.
        """
        ...
