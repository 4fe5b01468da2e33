"""What a study will cost, said before it starts: operations counted, seconds measured on a sample.

Nothing is read, trained or written. The time of a few arms' training steps on random inputs is
taken on this machine; the other arms are taken for the mean of those.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sma_core.config import ArchitectureConfig, InputConfig, config_from_dict
from sma_core.costs import dense_step_flops
from sma_core.inputs import Inputs
from sma_core.model import build_model
from sma_core.threads import compute_threads
from sma_eval.resources import Resources
from sma_eval.scheduler import Asha
from sma_eval.space import Trial
from sma_eval.study import Study

# Arms that are timed: a dry run is to answer in seconds.
_SAMPLE = 4
# Time steps of a timed batch, at most. A larger one takes as much longer as it is larger.
_TIMED_STEPS = 8192
# Forward and backward pass together cost three forward passes, to a good approximation.
_TRAINING_FACTOR = 3


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What all trials of a study take together.

    Parameters
    ----------
    trials
        Number of trials, those included that a search has yet to ask for.
    optimizer_steps
        Of all trials, when none stops early.
    expected_steps
        Of all trials when the scheduler keeps as many as it means to; ASHA keeps more where trials
        come one after the other, as the first ones meet no rivals.
    time_steps
        Time steps that they train on, padding included, when none stops early.
    training_flops
        FLOPs of training with every sub-module on, hence an upper bound.
    concurrent
        Trials that this machine runs at a time.
    seconds
        Wall-clock time of training and validation on this machine, of the expected steps; None when
        `untimed`. What else runs here makes it longer, routing and early stops make it shorter.
    untimed
        Why there is no time; None when there is one.
    """

    trials: int
    optimizer_steps: int
    expected_steps: int
    time_steps: int
    training_flops: float
    concurrent: int
    seconds: float | None
    untimed: str | None = None

    def __str__(self) -> str:
        """Say it in two or three lines."""
        lines = [
            f"cost: {self.optimizer_steps:,} optimiser steps over {self.time_steps:,} time steps, "
            f"at most {self.training_flops:.3g} FLOPs"
        ]
        if self.expected_steps < self.optimizer_steps:
            share = self.expected_steps / self.optimizer_steps
            lines.append(
                f"early stops: about {self.expected_steps:,} optimiser steps ({share:.0%}) if each "
                "comparison keeps as many trials as it means to"
            )
        if self.seconds is None:
            lines.append(f"time: not estimated, since {self.untimed}")
        else:
            lines.append(
                f"time: about {_duration(self.seconds)} on this machine, "
                f"{self.concurrent} at a time"
            )
        return "\n".join(lines)


def estimate_cost(study: Study, trials: Sequence[Trial], cpus: int | None = None) -> CostEstimate:
    """Estimate what a study costs.

    Parameters
    ----------
    study
        The study.
    trials
        Those that are known beforehand; of every arm equally many.
    cpus
        Processors to share out; those of this machine unless given.
    """
    resources = study.resources
    models = {trial.arm: config_from_dict(trial.model) for trial in trials}
    flops = {arm: dense_step_flops(model) for arm, model in models.items()}
    steps = [_time_steps(trial) for trial in trials]
    share = int((cpus or os.cpu_count() or 1) / resources.total_cpus)
    concurrent = max(1, min(share, resources.max_concurrent or share, study.trials))
    untimed = _untimed(resources)
    # What is asked for later costs what is known: the budget is the same for all.
    scale = study.trials // len(trials)
    budget = trials[0].training["max_steps"]
    expected = _expected_share(study, budget)
    return CostEstimate(
        trials=study.trials,
        optimizer_steps=study.trials * budget,
        expected_steps=round(expected * study.trials * budget),
        time_steps=scale * sum(steps),
        training_flops=_TRAINING_FACTOR
        * scale
        * sum(flops[trial.arm] * count for trial, count in zip(trials, steps, strict=True)),
        concurrent=concurrent,
        seconds=None
        if untimed
        else expected * scale * _seconds(trials, models, resources) / concurrent,
        untimed=untimed,
    )


def _untimed(resources: Resources) -> str | None:
    if resources.gpus:
        return "the trials run on GPUs"
    if resources.processes > 1:
        return f"{resources.processes} processes train a trial"
    return None


def _expected_share(study: Study, budget: int) -> float:
    """Share of the whole budget that is spent when the scheduler keeps what it means to."""
    scheduler, seeds = study.scheduler, len(study.seeds)
    if not isinstance(scheduler, Asha):
        return 1.0
    steps, running, before = 0.0, study.choices, 0
    for rung in scheduler.rungs(budget):
        steps += running * (rung - before)
        running, before = math.ceil(running / scheduler.reduction), rung
    steps += running * (budget - before) + (seeds - 1) * running * budget
    return steps / (study.choices * seeds * budget)


def _time_steps(trial: Trial) -> int:
    return trial.training["max_steps"] * _batch_steps(trial)


def _batch_steps(trial: Trial) -> int:
    return trial.training["batch_size"] * trial.training["window"]


def _seconds(
    trials: Sequence[Trial], models: dict[str, ArchitectureConfig], resources: Resources
) -> float:
    """Seconds of all trials one after the other, from the steps of a few of their arms."""
    first = {trial.arm: trial for trial in reversed(trials)}
    arms = list(models)
    count = min(_SAMPLE, len(arms))
    sample = [first[arms[i * len(arms) // count]] for i in range(count)]
    with compute_threads(resources.threads):
        times = [_timed(trial, models[trial.arm]) for trial in sample]
    train, evaluate = (sum(parts) / len(times) for parts in zip(*times, strict=True))
    total = 0.0
    for trial in trials:
        training = trial.training
        evaluations = training["max_steps"] // training["evaluate_every"]
        total += training["max_steps"] * train
        total += evaluations * training["evaluate_batches"] * evaluate
    return total


def _timed(trial: Trial, config: ArchitectureConfig) -> tuple[float, float]:
    """Seconds of one training step, and of one batch of validation."""
    window = trial.training["window"]
    rows = max(1, min(trial.training["batch_size"], _TIMED_STEPS // window))
    scale = trial.training["batch_size"] / rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        inputs = _random_inputs(config.inputs, rows, window)

        def train() -> None:
            optimizer.zero_grad()
            model(inputs).prediction.square().mean().backward()
            optimizer.step()

        @torch.no_grad()
        def evaluate() -> None:
            model(inputs)

        return scale * _fastest(train), scale * _fastest(evaluate)


def _fastest(work: Callable[[], None]) -> float:
    times = []
    for _ in range(3):  # the first one also warms up
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _random_inputs(config: InputConfig, rows: int, steps: int) -> Inputs:
    categorical = [torch.randint(size, (rows, steps)) for size in config.categorical]
    return Inputs(
        torch.randn(rows, steps, config.numeric) if config.numeric else None,
        torch.stack(categorical, dim=-1) if categorical else None,
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
