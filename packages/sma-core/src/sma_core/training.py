"""Train a model on a prepared data set: a plain loop that a stop at any moment does not disturb.

Every random choice of a step follows from the seed and the step's number: its batch, its dropout.
So a run that is killed and called again does the same arithmetic as one that was not, and on the
same CPU ends with the same weights, bit for bit.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sma_core.checkpoint import CARD_FILE, load_checkpoint, save_checkpoint
from sma_core.config import ArchitectureConfig, config_to_dict
from sma_core.dataset import Batch, PreparedDataset, WindowSampler
from sma_core.errors import DatasetError, TrainingError
from sma_core.files import digest_of
from sma_core.model import SequenceModel, build_model
from sma_core.objectives import activation_rates, routing_loss, task_loss
from sma_core.routing import set_progress
from sma_core.training_checks import check_fit
from sma_core.training_config import TrainingConfig
from sma_core.training_state import Progress, TrainingState

__all__ = ["FitResult", "Progress", "TrainingConfig", "check_fit", "evaluate", "fit"]

# An activation rate this close to its target has reached it: closer is noise between batches.
RATE_TOLERANCE = 0.05
_FINAL_RATE = 0.1  # share of the learning rate that the cosine ends with
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
    device: torch.device | str = "cpu",
    provenance: Mapping[str, Any] | None = None,
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
        Called after every step. It may raise to stop: what was saved stays.
    device : torch.device or str
        Where to train.
    provenance : mapping, optional
        JSON-ready record to keep in the checkpoint's card.

    Returns
    -------
    FitResult
        Where the checkpoint is and how it came to be.

    Raises
    ------
    ConfigError, DatasetError
        When the model and the data set do not fit each other.
    TrainingError
        When the folder holds another model or its training, or the loss is not a number.
    """
    folder = Path(folder)
    check_fit(config, dataset, training)
    digest = digest_of(
        {
            "config": config_to_dict(config),
            "training": asdict(training),
            "dataset": dataset.card.digest,
        }
    )
    if (folder / CARD_FILE).is_file():
        return _finished(folder, digest)
    # The caller's random numbers stay as they are.
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        run = _Run(config, dataset, training, folder / _STATE_FOLDER, digest, device)
        run.train(on_progress)
        state = run.state
        run.model.load_state_dict(state.best_weights)
    record = {
        "digest": digest,
        "training": asdict(training),
        "best_step": state.best_step,
        "metrics": state.best_metrics,
        "steps": state.step,
        "seconds": state.seconds,
        "history": [asdict(progress) for progress in state.history],
    }
    save_checkpoint(
        folder,
        run.model,
        provenance={**(provenance or {}), "fit": record},
        dataset_card=dataset.card.to_dict(),
    )
    shutil.rmtree(folder / _STATE_FOLDER)
    return _result(folder, record)


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        config: ArchitectureConfig,
        dataset: PreparedDataset,
        training: TrainingConfig,
        folder: Path,
        digest: str,
        device: torch.device | str,
    ) -> None:
        self.training = training
        self.folder = folder
        self.digest = digest
        self.device = device

        def sampler(split: str) -> WindowSampler:
            return WindowSampler(
                dataset.split(split),
                config.head.kind,
                window=training.window,
                batch_size=training.batch_size,
                seed=training.seed,
            )

        self.train_batches = sampler("train")
        self.validation_batches = sampler("validation")
        torch.manual_seed(training.seed)
        self.model = build_model(config).to(device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, training.weight_decay), fused=True
        )
        self.state = TrainingState.load(folder, digest, self.model, self.optimizer)

    def train(self, on_progress: Callable[[Progress], None] | None) -> None:
        training, state = self.training, self.state
        began, seconds_before, tokens = time.perf_counter(), state.seconds, 0
        # A run that was stopped after its last step, or that had lost patience, has nothing to do.
        while state.step < training.max_steps and state.stale < training.patience:
            batch = self.train_batches.batch(state.step).to(self.device)
            loss, rate = self._step(batch)
            tokens += _steps_of(batch)
            state.step += 1
            state.loss_sum += loss
            state.loss_count += 1
            last = state.step == training.max_steps
            progress = Progress(
                step=state.step,
                max_steps=training.max_steps,
                train_loss=state.loss_sum / state.loss_count,
                validation_loss=None,
                activation_rate=rate,
                tokens_per_second=tokens / (time.perf_counter() - began),
            )
            if last or state.step % training.evaluate_every == 0:
                progress = self._evaluate(progress)
            state.seconds = seconds_before + time.perf_counter() - began
            if last or state.step % training.checkpoint_every == 0 or self._out_of_patience:
                state.save(self.folder, self.digest, self.model, self.optimizer)
            if on_progress is not None:
                on_progress(progress)

    @property
    def _out_of_patience(self) -> bool:
        return self.state.stale >= self.training.patience

    def _step(self, batch: Batch) -> tuple[float, float | None]:
        """Take one optimiser step; return the task's loss and the activation rate."""
        training, step = self.training, self.state.step
        torch.manual_seed((training.seed + 1) * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        set_progress(self.model, step / training.max_steps)
        self.model.train()
        outputs = self.model(batch.inputs)
        task = task_loss(
            self.model.config.head, outputs.prediction, batch, training.positive_weight
        )
        loss, rate = task.mean, None
        if outputs.decisions:
            valid = batch.inputs.valid
            rate = activation_rates(outputs.decisions, valid).mean().item()
            loss = loss + routing_loss(outputs.decisions, valid, training)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip)
        if not math.isfinite(norm.item()):
            raise TrainingError(
                f"step {step + 1}: the gradient is not finite (loss {task.mean.item():g}): lower "
                "learning_rate, or look for extreme values in the data"
            )
        self.optimizer.step()
        return task.mean.item(), rate

    def _evaluate(self, progress: Progress) -> Progress:
        """Measure on the validation split and keep the weights if they are the best so far."""
        state = self.state
        metrics = evaluate(self.model, self.validation_batches, self.training, device=self.device)
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(
                f"step {state.step}: the validation loss is not finite: lower "
                "learning_rate, or look for extreme values in the data"
            )
        if not state.best_metrics or self._rank(metrics) < self._rank(state.best_metrics):
            state.best_step, state.best_metrics, state.stale = state.step, metrics, 0
            state.best_weights = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }
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


@torch.no_grad()
def evaluate(
    model: SequenceModel,
    sampler: WindowSampler,
    training: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measure a model on the first batches of a sampler's first epoch.

    Returns
    -------
    dict
        ``loss``; ``accuracy`` in classification; ``activation_rate`` when the model routes.
    """
    model.eval()
    total = weight = correct = count = active = steps = 0.0
    for index in range(min(training.evaluate_batches, sampler.batches_per_epoch)):
        batch = sampler.batch(index).to(device)
        outputs = model(batch.inputs)
        task = task_loss(model.config.head, outputs.prediction, batch, training.positive_weight)
        total += task.total.item()
        weight += task.weight.item()
        correct += task.correct.item()
        count += task.count.item()
        if outputs.decisions:
            rate = activation_rates(outputs.decisions, batch.inputs.valid).mean().item()
            active += rate * _steps_of(batch)
            steps += _steps_of(batch)
    if weight == 0.0:
        raise DatasetError(f"{sampler.split.path}: the batches to evaluate hold no target")
    metrics = {"loss": total / weight}
    if model.config.head.kind != "forecast":
        metrics["accuracy"] = correct / count
    if steps:
        metrics["activation_rate"] = active / steps
    return metrics


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Rate of the optimiser step after `step` earlier ones."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    share = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * share))
    return training.learning_rate * (_FINAL_RATE + (1.0 - _FINAL_RATE) * cosine)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into the weights of linear maps, which decay, and all others."""
    decaying: list[Tensor] = [
        module.weight for module in model.modules() if isinstance(module, nn.Linear)
    ]
    chosen = set(decaying)
    others = [parameter for parameter in model.parameters() if parameter not in chosen]
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _steps_of(batch: Batch) -> int:
    lengths = batch.inputs.lengths
    return batch.mask.numel() if lengths is None else int(lengths.sum())


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
