"""Figures of a model on a split: loss, accuracy, activation rate; over all processes of a run."""

import torch

from sma_core.dataset import WindowSampler
from sma_core.errors import DatasetError
from sma_core.model import SequenceModel
from sma_core.objectives import activation_rates, task_loss
from sma_core.parallel import ALONE, Parallel
from sma_core.training_config import TrainingConfig
from sma_core.training_step import steps_of


@torch.no_grad()
def evaluate(
    model: SequenceModel,
    sampler: WindowSampler,
    training: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
    parallel: Parallel = ALONE,
) -> dict[str, float]:
    """Measure a model on the first batches of a sampler's first epoch.

    Each of several processes measures its part of every batch; all return the same figures.

    Returns
    -------
    dict
        ``loss``; ``accuracy`` in classification; ``activation_rate`` when the model routes.
    """
    model.eval()
    total = weight = correct = count = active = steps = 0.0
    for index in range(min(training.evaluate_batches, sampler.batches_per_epoch)):
        batch = sampler.batch(index, part=parallel.rank, parts=parallel.size).to(device)
        outputs = model(batch.inputs)
        task = task_loss(model.config.head, outputs.prediction, batch, training.positive_weight)
        total += task.total.item()
        weight += task.weight.item()
        correct += task.correct.item()
        count += task.count.item()
        if outputs.decisions:
            rate = activation_rates(outputs.decisions, batch.inputs.valid).mean().item()
            active += rate * steps_of(batch)
            steps += steps_of(batch)
    sums = parallel.from_main(parallel.sum([total, weight, correct, count, active, steps]))
    total, weight, correct, count, active, steps = sums
    if weight == 0.0:
        raise DatasetError(f"{sampler.split.path}: the batches to evaluate hold no target")
    metrics = {"loss": total / weight}
    if model.config.head.kind != "forecast":
        metrics["accuracy"] = correct / count
    if steps:
        metrics["activation_rate"] = active / steps
    return metrics
