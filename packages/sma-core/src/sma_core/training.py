"""Train a model on a prepared data set: a plain loop that a stop at any moment does not disturb.

Every random choice of a step follows from the seed and the step's number: its batch, its dropout.
So a run that is killed and called again does the same arithmetic as one that was not, and on the
same CPU ends with the same weights, bit for bit.

Several processes train one model where `fit` is told of them (`sma_core.parallel`): each computes
its part of every batch, and all that is decided is decided on sums over all of them.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sma_core.checkpoint import CARD_FILE, load_checkpoint, save_checkpoint
from sma_core.compiled import compiling
from sma_core.config import ArchitectureConfig, config_to_dict
from sma_core.dataset import PreparedDataset, WindowSampler
from sma_core.errors import DivergenceError, TrainingError
from sma_core.evaluation import evaluate
from sma_core.files import digest_of
from sma_core.model import build_model
from sma_core.parallel import (
    ALONE,
    Parallel,
    Spread,
    Stopped,
    StopRequest,
    gathered,
    stop_requests,
)
from sma_core.training_checks import check_fit
from sma_core.training_config import TrainingConfig
from sma_core.training_state import Progress, TrainingState, rename
from sma_core.training_step import Stepper, learning_rate, parameter_groups

__all__ = [
    "FitResult",
    "Progress",
    "TrainingConfig",
    "adopt",
    "check_fit",
    "evaluate",
    "fit",
    "learning_rate",
]

# An activation rate this close to its target has reached it: closer is noise between batches.
RATE_TOLERANCE = 0.05
_STATE_FOLDER = "progress"


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` made.

    Parameters
    ----------
    checkpoint : Path
        Folder of the best model by validation.
    best_step : int
        Step it was taken at.
    best_validation_loss : float
        Its loss there.
    validation_metrics : dict
        ``loss``, and where they apply ``accuracy`` and ``activation_rate``.
    steps : int
        Optimiser steps done before training ended.
    seconds : float
        Time that took, over all processes.
    history : list of Progress
        Every evaluation.
    """

    checkpoint: Path
    best_step: int
    best_validation_loss: float
    validation_metrics: dict[str, float]
    steps: int
    seconds: float
    history: list[Progress]


def fit(
    config: ArchitectureConfig,
    dataset: PreparedDataset,
    training: TrainingConfig,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    device: torch.device | str | None = None,
    provenance: Mapping[str, Any] | None = None,
    parallel: Parallel = ALONE,
    until: int | None = None,
) -> FitResult:
    """Train on the split "train", stop early on "validation", leave a checkpoint in `folder`.

    Called again after a stop of any kind, it goes on where it was; called again after it finished,
    it returns at once.

    Parameters
    ----------
    config : ArchitectureConfig
        Model to build.
    dataset : PreparedDataset
        With the splits "train" and "validation".
    training : TrainingConfig
        How.
    folder : Path
        Gets the checkpoint, and ``progress/`` while training lasts.
    on_progress : callable, optional
        Called after every step, of several processes in rank 0. It may raise to stop: what was
        saved stays.
    device : torch.device or str, optional
        Where to train; by default on the device of `parallel`, which is the CPU when alone.
    provenance : mapping, optional
        JSON-ready record to keep in the checkpoint's card.
    parallel : Parallel
        The processes that train together, from `sma_core.parallel.join`. All call `fit` with the
        same arguments, and see the same folders; another number of them may take up a run.
    until : int, optional
        Stop after that step, with the state saved, to be taken up by another call.

    Returns
    -------
    FitResult
        Where the checkpoint is and how it came to be.

    Raises
    ------
    ConfigError, DatasetError
        When the model and the data set do not fit each other.
    TrainingError
        When the folder holds another model or its training.
    DivergenceError
        When a gradient or the validation loss is not finite.
    Stopped
        After `until`, or when several processes were asked to stop, by SIGINT or SIGTERM: the
        state is saved.
    """
    folder = Path(folder)
    check_fit(config, dataset, training, processes=parallel.size, sharding=parallel.sharding)
    digest = _digest(config, dataset, training)
    (finished,) = parallel.from_main([float((folder / CARD_FILE).is_file())])
    if finished:
        result = _finished(folder, digest)
        if parallel.main:  # a stop right after the checkpoint was written may have left it
            shutil.rmtree(folder / _STATE_FOLDER, ignore_errors=True)
        return result
    device = torch.device(parallel.device if device is None else device)
    # The caller's random numbers stay as they are.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        compiling(training.compile),
    ):
        run = _Run(config, dataset, training, folder / _STATE_FOLDER, digest, device, parallel)
        run.train(on_progress, until)
        state = run.state
        model = build_model(config)
    record = {
        "digest": digest,
        "training": training.to_dict(),
        "best_step": state.best_step,
        "metrics": state.best_metrics,
        "steps": state.step,
        "seconds": state.seconds,
        "history": [asdict(progress) for progress in state.history],
    }
    if parallel.main:
        model.load_state_dict(state.best_weights)
        save_checkpoint(
            folder,
            model,
            provenance={**(provenance or {}), "fit": record},
            dataset_card=dataset.card.to_dict(),
        )
        shutil.rmtree(folder / _STATE_FOLDER)
    parallel.wait()
    return _result(folder, record)


def adopt(
    config: ArchitectureConfig, dataset: PreparedDataset, training: TrainingConfig, folder: Path
) -> None:
    """Let `fit` take up an unfinished run of the same model and data with other settings.

    The state of a run belongs to its settings, so that none changes by mistake. Here it is meant,
    as in population-based training: weights and moments stay, what the settings say changes from
    the next step on.

    Parameters
    ----------
    config, dataset
        Those of the run.
    training
        Settings to go on with.
    folder
        Of the run, or of a copy of it.

    Raises
    ------
    TrainingError
        When no unfinished run is there.
    """
    rename(Path(folder) / _STATE_FOLDER, _digest(config, dataset, training))


def _digest(config: ArchitectureConfig, dataset: PreparedDataset, training: TrainingConfig) -> str:
    """Name a run."""
    return digest_of(
        {
            "config": config_to_dict(config),
            "training": training.to_dict(),
            "dataset": dataset.card.digest,
        }
    )


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        config: ArchitectureConfig,
        dataset: PreparedDataset,
        training: TrainingConfig,
        folder: Path,
        digest: str,
        device: torch.device,
        parallel: Parallel,
    ) -> None:
        self.training = training
        self.folder = folder
        self.digest = digest
        self.device = device
        self.parallel = parallel

        def sampler(split: str) -> WindowSampler:
            return WindowSampler(
                dataset.split(split),
                config.head.kind,
                window=training.window,
                batch_size=training.batch_size,
                seed=training.seed,
            )

        batches = sampler("train")
        self.validation_batches = sampler("validation")
        torch.manual_seed(training.seed)
        self.model = build_model(config).to(device)
        spread = Spread(
            self.model,
            parallel,
            recompute=training.activation_checkpointing,
            how=training.compile,
        )
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, training.weight_decay), fused=True
        )
        self.stepper = Stepper(spread, self.optimizer, batches, training, parallel)
        self.state = TrainingState.load(folder, digest, self.model, self.optimizer)
        (step,) = parallel.from_main([float(self.state.step)])
        if step != self.state.step:
            raise TrainingError(
                f"{folder}: rank 0 read the state after {step:.0f} steps there, rank "
                f"{parallel.rank} after {self.state.step}: name a folder that all processes share"
            )

    def train(self, on_progress: Callable[[Progress], None] | None, until: int | None) -> None:
        if self.parallel.size == 1:
            self._train(on_progress, StopRequest(), until)
            return
        with stop_requests() as request:
            self._train(on_progress if self.parallel.main else None, request, until)

    def _train(
        self,
        on_progress: Callable[[Progress], None] | None,
        request: StopRequest,
        until: int | None,
    ) -> None:
        training, state = self.training, self.state
        began, seconds_before, tokens = time.perf_counter(), state.seconds, 0
        # A run that was stopped after its last step, or that had lost patience, has nothing to do.
        while state.step < training.max_steps and state.stale < training.patience:
            if until is not None and state.step >= until:
                raise Stopped(f"stopped after step {state.step}, as asked beforehand")
            done = self.stepper.take(state.step, self.device, stop=request.asked)
            tokens += done.steps
            state.step += 1
            state.loss_sum += done.loss
            state.loss_count += 1
            last = state.step == training.max_steps
            progress = Progress(
                step=state.step,
                max_steps=training.max_steps,
                train_loss=state.loss_sum / state.loss_count,
                validation_loss=None,
                activation_rate=done.rate,
                tokens_per_second=tokens / (time.perf_counter() - began),
            )
            if last or state.step % training.evaluate_every == 0:
                progress = self._evaluate(progress)
            state.seconds = seconds_before + time.perf_counter() - began
            due = last or state.step % training.checkpoint_every == 0 or self._out_of_patience
            if due or done.stop or state.step == until:
                state.save(
                    self.folder,
                    self.digest,
                    self.model,
                    self.optimizer,
                    write=self.parallel.main,
                )
            if on_progress is not None:
                on_progress(progress)
            if done.stop:
                raise Stopped(f"stopped after step {state.step}, to be taken up from there")

    @property
    def _out_of_patience(self) -> bool:
        return self.state.stale >= self.training.patience

    def _evaluate(self, progress: Progress) -> Progress:
        """Measure on the validation split and keep the weights if they are the best so far."""
        state = self.state
        metrics = evaluate(
            self.model,
            self.validation_batches,
            self.training,
            device=self.device,
            parallel=self.parallel,
        )
        if not math.isfinite(metrics["loss"]):
            raise DivergenceError(
                f"step {state.step}: the validation loss is not finite: lower "
                "learning_rate, or look for extreme values in the data"
            )
        if not state.best_metrics or self._rank(metrics) < self._rank(state.best_metrics):
            state.best_step, state.best_metrics, state.stale = state.step, metrics, 0
            weights = gathered(self.model.state_dict().items(), keep=self.parallel.main)
            state.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            state.stale += 1
        state.loss_sum, state.loss_count = 0.0, 0
        evaluated = Progress(
            step=progress.step,
            max_steps=progress.max_steps,
            train_loss=progress.train_loss,
            validation_loss=metrics["loss"],
            activation_rate=metrics.get("activation_rate"),
            tokens_per_second=progress.tokens_per_second,
            validation_accuracy=metrics.get("accuracy"),
        )
        state.history.append(evaluated)
        return evaluated

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Smaller is better. With a target rate, reaching it comes before the loss."""
        target = self.training.target_rate
        if target is None:
            return 0.0, metrics["loss"]
        miss = abs(metrics["activation_rate"] - target)
        return max(0.0, miss - RATE_TOLERANCE), metrics["loss"]


def _finished(folder: Path, digest: str) -> FitResult:
    record = load_checkpoint(folder).card["provenance"].get("fit", {})
    if record.get("digest") != digest:
        raise TrainingError(
            f"{folder} holds a model of another configuration, data set or training: remove it or "
            "name another folder"
        )
    return _result(folder, record)


def _result(folder: Path, record: Mapping[str, Any]) -> FitResult:
    return FitResult(
        checkpoint=folder,
        best_step=record["best_step"],
        best_validation_loss=record["metrics"]["loss"],
        validation_metrics=dict(record["metrics"]),
        steps=record["steps"],
        seconds=record["seconds"],
        history=[Progress(**progress) for progress in record["history"]],
    )
