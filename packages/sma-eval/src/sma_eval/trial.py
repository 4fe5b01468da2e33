"""One trial: train, measure the best weights on the test split, count their cost. No Ray here.

Several processes may train it together: one calls `run_trial`, the others `train_along`, each with
the variables that `sma_core.parallel.join` reads in its environment.
"""

import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sma_core.checkpoint import CARD_FILE, load_checkpoint
from sma_core.config import config_from_dict
from sma_core.costs import dense_step_flops, parameter_count, state_bytes, step_flops
from sma_core.dataset import PreparedDataset, Split, WindowSampler
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel
from sma_core.objectives import activation_rates
from sma_core.parallel import Sharding, Stopped, join
from sma_core.threads import compute_threads
from sma_core.training import TrainingConfig, adopt, evaluate, fit
from sma_core.training_state import Progress
from sma_eval.records import Report, TrialResult
from sma_eval.space import Trial

# Streaming steps that are run before any is timed, and that are timed.
_WARM_STEPS, _TIMED_STEPS = 8, 64

OnReport = Callable[[Report, Path | None], None]
"""Takes a report, and the trial's folder when it holds a state to go on from."""


def run_trial(
    trial: Trial,
    dataset: Path,
    folder: Path,
    *,
    test_split: str,
    device: str = "cpu",
    threads: int = 1,
    sharding: Sharding = "ddp",
    until: int | None = None,
    provenance: Mapping[str, Any],
    report: OnReport,
) -> TrialResult | None:
    """Run a trial to its end, from wherever `folder` says that it stopped.

    Parameters
    ----------
    trial
        What to train.
    dataset
        Folder of the prepared data set.
    folder
        The trial's own: gets the state of training while it lasts, then the checkpoint. All
        processes of a trial see the same one.
    test_split
        Split that the result's test figures are of.
    device
        Where to train.
    threads
        How many to compute with. Sums of floats depend on it, so it is the study's to say and not
        the machine's: a trial gives the same figures wherever it runs.
    sharding
        How several processes hold the model.
    until
        Optimiser step to stop after for now; None: train to the end.
    provenance
        Kept in the checkpoint's card, with the environment that the trial ran in.
    report
        Called at every evaluation and whenever the state was saved.

    Returns
    -------
    TrialResult
        Figures of the best weights by validation; None when it stopped after `until`.
    """
    config = config_from_dict(trial.model)
    training = TrainingConfig(**trial.training)
    data = PreparedDataset.open(dataset)

    def on_progress(progress: Progress) -> None:
        saved = progress.step % training.checkpoint_every == 0 or progress.step == until
        if saved or progress.validation_loss is not None:
            report(_report(progress, trial), folder if saved else None)

    if trial.population and folder.exists() and not (folder / CARD_FILE).exists():
        adopt(config, data, training, folder)  # other nuisance values than it was saved with
    with compute_threads(threads):
        try:
            with join(sharding, device=device) as parallel:
                fitted = fit(
                    config,
                    data,
                    training,
                    folder,
                    on_progress=on_progress,
                    provenance={**provenance, **environment()},
                    parallel=parallel,
                    until=until,
                )
        except Stopped:
            return None
        # The other processes have left: what follows is for one alone.
        model = load_checkpoint(fitted.checkpoint, device).model
        sampler = WindowSampler(
            data.split(test_split),
            config.head.kind,
            window=training.window,
            batch_size=training.batch_size,
            seed=0,  # the same windows for every seed
        )
        whole = dataclasses.replace(training, evaluate_batches=sampler.batches_per_epoch)
        activation = measure_activation(model, sampler, device)
        streams = config.causal
        return TrialResult(
            validation=fitted.validation_metrics,
            test=evaluate(model, sampler, whole, device=device),
            activation=activation,
            flops_per_step=step_flops(config, activation),
            dense_flops_per_step=dense_step_flops(config),
            parameters=parameter_count(model),
            steps=fitted.steps,
            best_step=fitted.best_step,
            seconds=fitted.seconds,
            latency_seconds=measure_latency(model, data.split(test_split), device)
            if streams
            else None,
            state_bytes=state_bytes(config) if streams else None,
        )


def train_along(
    trial: Trial,
    dataset: Path,
    folder: Path,
    *,
    device: str,
    threads: int,
    sharding: Sharding,
    until: int | None,
) -> None:
    """Take part in the training of a trial that another process runs; the parameters are its."""
    with compute_threads(threads), suppress(Stopped), join(sharding, device=device) as parallel:
        fit(
            config_from_dict(trial.model),
            PreparedDataset.open(dataset),
            TrainingConfig(**trial.training),
            folder,
            parallel=parallel,
            until=until,
        )


@torch.no_grad()
def measure_activation(
    model: SequenceModel, sampler: WindowSampler, device: str = "cpu"
) -> tuple[tuple[float, ...], ...]:
    """Measure the share of steps that ran each sub-module, over one epoch of `sampler`.

    Returns
    -------
    tuple
        [layers][sub-modules].
    """
    model.eval()
    total, steps = torch.zeros(()), 0
    for index in range(sampler.batches_per_epoch):
        inputs = sampler.batch(index).inputs.to(device)
        rates = activation_rates(model(inputs).decisions, inputs.valid).double().cpu()
        count = inputs.batch * inputs.steps if inputs.valid is None else int(inputs.valid.sum())
        total = total + rates * count
        steps += count
    return tuple(tuple(layer) for layer in (total / steps).tolist())


@torch.no_grad()
def measure_latency(model: SequenceModel, split: Split, device: str = "cpu") -> float:
    """Measure the median seconds of a streaming step, on the first rows of `split`."""
    model.eval()
    rows = split.read(0, min(int(split.offsets[1]), _WARM_STEPS + _TIMED_STEPS))

    def at(step: int) -> Inputs:
        columns = (rows.numeric, rows.categorical)
        numeric, categorical = (
            None if column is None else column[step][None, None] for column in columns
        )
        return Inputs(numeric, None if categorical is None else categorical.long()).to(device)

    length = len(rows.time)
    state = model.init_state(1)
    seconds: list[float] = []
    for step in range(_WARM_STEPS + _TIMED_STEPS):
        if step % length == 0:
            state = model.init_state(1)
        inputs = at(step % length)
        start = time.perf_counter()
        model.step(inputs, state)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_STEPS:])


def environment() -> dict[str, Any]:
    """Say what a trial runs on: versions and processor, nothing that names the machine."""
    return {
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sma_core": importlib.metadata.version("sma-core"),
            "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        }
    }


def _report(progress: Progress, trial: Trial) -> Report:
    figures = {
        "train_loss": progress.train_loss,
        "validation_loss": progress.validation_loss,
        "validation_accuracy": progress.validation_accuracy,
        "activation_rate": progress.activation_rate,
        "tokens_per_second": progress.tokens_per_second,
    }
    if trial.population:
        figures |= {name: trial.training[name] for name in trial.nuisance}
    measured = {name: value for name, value in figures.items() if value is not None}
    return Report(step=progress.step, metrics=measured)
