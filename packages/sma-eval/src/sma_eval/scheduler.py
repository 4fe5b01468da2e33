"""The table ``[scheduler]``: whether a trial is stopped early, or changed while it trains.

Each is about one arm at a time. A scheduler that compared the trials of different arms would give
the arm that starts well more training than the one that ends well.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from sma_eval.errors import FieldError
from sma_eval.section import Section, Seed


class NoScheduler(Section, frozen=True):
    """Every trial trains to its end."""

    kind: Literal["none"]

    def check(self, training: Mapping[str, Any]) -> None:
        """Nothing can be wrong with it."""


class Asha(Section, frozen=True):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934), by Ray Tune.

    The choices of nuisance values of an arm race with the study's first seed. At ``grace``,
    ``grace * reduction``, ``grace * reduction ** 2``, ... optimiser steps a trial is stopped unless
    its objective on validation is among the best ``1 / reduction`` of those that came so far. The
    choices that reach the end are then trained with the other seeds, which nothing stops: what is
    compared between arms has every seed.
    """

    kind: Literal["asha"]
    grace: Annotated[int, Field(ge=1)]
    """Optimiser steps of the first comparison; no trial is stopped before."""
    reduction: Annotated[int, Field(ge=2)] = 4
    """One in so many goes on."""

    def rungs(self, max_steps: int) -> list[int]:
        """Optimiser steps at which trials are compared."""
        steps = []
        step = self.grace
        while step < max_steps:
            steps.append(step)
            step *= self.reduction
        return steps

    def check(self, training: Mapping[str, Any]) -> None:
        """Check against the training of a trial.

        Raises
        ------
        FieldError
            When no comparison would take place, or none with a measurement of its step.
        """
        if self.grace >= training["max_steps"]:
            raise FieldError(
                f"scheduler.grace: {self.grace} steps leave nothing to stop, since "
                f"training.max_steps is {training['max_steps']}"
            )
        _require_evaluation("grace", self.grace, training)


class Pbt(Section, frozen=True):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846) of nuisance values.

    The choices of an arm are a population, for each seed one. Every ``interval`` optimiser steps
    the worst members by the objective on validation take over weights and nuisance values of one of
    the best, and the values are then changed a little. What is scientific never changes.
    """

    kind: Literal["pbt"]
    interval: Annotated[int, Field(ge=1)]
    """Optimiser steps between two comparisons."""
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of a population that takes over, and that is taken over from; at least one member."""
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Probability that a value is drawn anew and not changed from what it was."""
    seed: Seed = 0
    """Of who takes over from whom and of the changes."""

    def check(self, training: Mapping[str, Any]) -> None:
        """Check against the training of a trial.

        Raises
        ------
        FieldError
            When no comparison would take place, or none with a measurement of its step.
        """
        if self.interval >= training["max_steps"]:
            raise FieldError(
                f"scheduler.interval: {self.interval} steps leave nothing to change, since "
                f"training.max_steps is {training['max_steps']}"
            )
        _require_evaluation("interval", self.interval, training)


Scheduler = Annotated[NoScheduler | Asha | Pbt, Field(discriminator="kind")]


def _require_evaluation(field: str, steps: int, training: Mapping[str, Any]) -> None:
    every = training["evaluate_every"]
    if steps % every:
        raise FieldError(
            f"scheduler.{field}: {steps} steps are no multiple of training.evaluate_every "
            f"({every}), and trials are compared by what was measured there"
        )
