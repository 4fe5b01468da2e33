"""What is known of a trial, and who is told when it changes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from sma_eval.failures import FAILURES, Failure
from sma_eval.search import Choice
from sma_eval.space import Trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Figures of a finished trial, all of its best weights by validation.

    Parameters
    ----------
    validation, test
        Metrics of those splits by name: loss, activation_rate, and accuracy for classification.
        Without a test split both are of the validation split.
    activation
        Share of steps that ran each sub-module, [layers][sub-modules], on the test split.
    flops_per_step, dense_flops_per_step
        FLOPs of one time step of a forward pass at that activation, and with all of them active.
    parameters
        Number of weights.
    steps, best_step
        Optimiser steps taken in all, and until the best weights.
    seconds
        Wall-clock seconds of training, of every attempt together.
    latency_seconds
        Median of a streaming step of one sequence, on the trial's device, beside whatever else ran
        there; None for a model that cannot stream.
    state_bytes
        What a stream keeps from step to step; None likewise.
    """

    validation: Mapping[str, float]
    test: Mapping[str, float]
    activation: tuple[tuple[float, ...], ...]
    flops_per_step: float
    dense_flops_per_step: float
    parameters: int
    steps: int
    best_step: int
    seconds: float
    latency_seconds: float | None = None
    state_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Move:
    """A member of a population took over from another.

    Parameters
    ----------
    step
        Optimiser step after which it did.
    donor
        Id of the trial whose weights it went on with.
    nuisance
        The values that it went on with.
    """

    step: int
    donor: str
    nuisance: Choice


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as it stands: what it is, how far it came, and what came of it.

    Parameters
    ----------
    trial
        What it is.
    status
        ``pending`` before its first report; ``running`` also after its driver died; ``stopped``
        when others were better, which is no failure; without a result it otherwise ends in one of
        `FAILURES`.
    step
        Optimiser steps reported.
    curve
        The objective on validation at every evaluation: pairs of optimiser step and value.
    moves
        Of a member of a population: when it took over from another.
    checkpoint
        Folder of its latest checkpoint, relative to the study folder.
    result
        Figures, once finished.
    reason, traceback
        Why it ended without a result: one line, and where in the code when it threw.
    """

    trial: Trial
    status: Literal["pending", "running", "finished", "stopped"] | Failure = "pending"
    step: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    moves: tuple[Move, ...] = ()
    checkpoint: str | None = None
    result: TrialResult | None = None
    reason: str | None = None
    traceback: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ("finished", "stopped") or self.failed

    @property
    def failed(self) -> bool:
        """Whether it was to end with a result and did not."""
        return self.status in FAILURES

    @property
    def training(self) -> dict[str, Any]:
        """The configuration that it trains with now: moves have changed its nuisance values."""
        return {**self.trial.training, **(self.moves[-1].nuisance if self.moves else {})}

    def measured(self, step: int, value: float) -> Self:
        """Return the record with an evaluation; one that went back measures again."""
        before = tuple(point for point in self.curve if point[0] < step)
        return dataclasses.replace(self, curve=(*before, (step, value)))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        values = dict(content)
        values["trial"] = Trial.from_dict(values["trial"])
        values["curve"] = tuple((step, value) for step, value in values.get("curve", ()))
        values["moves"] = tuple(Move(**move) for move in values.get("moves", ()))
        if values["result"] is not None:
            rates = tuple(tuple(layer) for layer in values["result"]["activation"])
            values["result"] = TrialResult(**{**values["result"], "activation": rates})
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Live figures of a running trial.

    Parameters
    ----------
    step
        Optimiser step.
    metrics
        train_loss, tokens_per_second; validation_loss, validation_accuracy and activation_rate
        where measured; the present nuisance values of a member of a population.
    """

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Told, in the driver, of every change of a trial."""

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Take note of a trial as it stands now, and of the figures that it just reported."""
        ...
