"""What a study will cost, said before it starts: operations counted, seconds measured on a sample.

Nothing is read, trained or written. The time of a few arms' training steps on random inputs is
taken on this machine; the other arms are taken for the mean of those.
"""

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
from sma_eval.space import Trial
from sma_eval.study import Resources

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
        Number of trials.
    optimizer_steps
        Of all trials, when none stops early.
    time_steps
        Time steps that they train on, padding included.
    training_flops
        FLOPs of training with every sub-module on, hence an upper bound.
    concurrent
        Trials that this machine runs at a time.
    seconds
        Wall-clock time of training and validation on this machine, all trials; None when they ask
        for GPUs. What else runs here makes it longer, routing and early stops make it shorter.
    """

    trials: int
    optimizer_steps: int
    time_steps: int
    training_flops: float
    concurrent: int
    seconds: float | None

    def __str__(self) -> str:
        """Say it in two lines."""
        counted = (
            f"cost: {self.optimizer_steps:,} optimiser steps over {self.time_steps:,} time steps, "
            f"at most {self.training_flops:.3g} FLOPs"
        )
        if self.seconds is None:
            return f"{counted}\ntime: not estimated, since the trials run on GPUs"
        return (
            f"{counted}\ntime: about {_duration(self.seconds)} on this machine, "
            f"{self.concurrent} at a time"
        )


def estimate_cost(
    trials: Sequence[Trial], resources: Resources, cpus: int | None = None
) -> CostEstimate:
    """Estimate what a study costs.

    Parameters
    ----------
    trials
        All of them.
    resources
        Of one trial.
    cpus
        Processors to share out; those of this machine unless given.
    """
    models = {trial.arm: config_from_dict(trial.model) for trial in trials}
    flops = {arm: dense_step_flops(model) for arm, model in models.items()}
    steps = [_time_steps(trial) for trial in trials]
    share = int((cpus or os.cpu_count() or 1) / resources.cpus)
    concurrent = max(1, min(share, resources.max_concurrent or share, len(trials)))
    return CostEstimate(
        trials=len(trials),
        optimizer_steps=sum(trial.training["max_steps"] for trial in trials),
        time_steps=sum(steps),
        training_flops=_TRAINING_FACTOR
        * sum(flops[trial.arm] * count for trial, count in zip(trials, steps, strict=True)),
        concurrent=concurrent,
        seconds=None if resources.gpus else _seconds(trials, models, resources) / concurrent,
    )


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
    with compute_threads(max(1, int(resources.cpus))):
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
