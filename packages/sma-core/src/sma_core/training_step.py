"""One optimiser step: over the parts of a batch, and over the processes of a run.

However a batch is cut, the step is that of the whole batch. Each part's loss is its sum over the
whole batch's weight, and not its own mean; routing terms, which are means over time steps, count by
the part's share of them.
"""

import math
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sma_core.dataset import Batch, WindowSampler
from sma_core.errors import DivergenceError
from sma_core.objectives import (
    activation_rates,
    routing_loss,
    settled_rates,
    task_loss,
    task_weight,
)
from sma_core.parallel import Parallel, Spread
from sma_core.parallel.spread import whole
from sma_core.routing import RoutingDecision, set_progress
from sma_core.training_config import TrainingConfig

_FINAL_RATE = 0.1  # share of the learning rate that the cosine ends with
# Between the seeds of two ranks. Of a seed the CPU's generator reads 32 bits: the golden ratio's
# share of them lays those of any number of ranks far apart.
_RANK_SEEDS = 2_654_435_769


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, over all parts and processes.

    Parameters
    ----------
    loss
        The task's, without what routing adds.
    rate
        Activation rate over the batch; None when the model does not route.
    steps
        Time steps of the batch.
    stop
        Whether any process was asked to stop.
    """

    loss: float
    rate: float | None
    steps: int
    stop: bool


class _Share(NamedTuple):
    """What this process computes of a step.

    `steps` are the time steps of each part that are no padding, `weight` is that of all targets.
    """

    parts: list[Batch]
    steps: list[int]
    weight: float


class Stepper:
    """Takes the steps of a run.

    Parameters
    ----------
    spread
        The model.
    optimizer
        Of its parameters.
    batches
        To learn from.
    training
        How.
    parallel
        The processes.
    """

    def __init__(
        self,
        spread: Spread,
        optimizer: torch.optim.AdamW,
        batches: WindowSampler,
        training: TrainingConfig,
        parallel: Parallel,
    ) -> None:
        self._spread = spread
        self._optimizer = optimizer
        self._batches = batches
        self._training = training
        self._parallel = parallel
        self._ahead: tuple[int, _Share] | None = None  # of the step that comes next

    def take(self, step: int, device: torch.device | str, *, stop: bool = False) -> StepResult:
        """Take the step after `step` earlier ones.

        Parameters
        ----------
        step
            Which one.
        device
            Where the model is.
        stop
            Whether this process was asked to stop.

        Raises
        ------
        DivergenceError
            The gradient is not finite, in every process alike. The weights are spoilt by then.
        """
        training, parallel, model = self._training, self._parallel, self._spread.model
        torch.manual_seed(noise_seed(training.seed, step, parallel.rank))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        set_progress(model, step / training.max_steps)
        model.train()
        ahead, self._ahead = self._ahead, None
        own = ahead[1] if ahead is not None and ahead[0] == step else self._read(step, device)
        head, positive_weight = model.config.head, training.positive_weight
        weight, steps, stops = parallel.sum([own.weight, float(sum(own.steps)), float(stop)])

        self._optimizer.zero_grad()
        # Read once, at the end: to read one would wait for the device, and then it for the host.
        losses: list[Tensor] = []
        rates: list[Tensor] = []
        shares: list[float] = []
        for number, (part, count) in enumerate(zip(own.parts, own.steps, strict=True)):
            share = count / max(steps, 1.0)
            batch = part.to(device)
            with self._spread.backward(last=number == len(own.parts) - 1):
                with self._autocast(device):
                    outputs = self._spread.module(batch.inputs)
                task = task_loss(head, outputs.prediction, batch, positive_weight)
                # A tensor, for its division is rounded as that of `TaskLoss.mean` is.
                mean = task.total / task.total.new_full((), max(weight, 1e-9))
                objective = mean
                if outputs.decisions:
                    valid = batch.inputs.valid
                    rates.append(activation_rates(outputs.decisions, valid).mean())
                    shares.append(share)
                    steered = self._rates(outputs.decisions, batch, count)
                    routing = routing_loss(outputs.decisions, valid, training, steered)
                    objective = objective + share * routing
                # Processes average their gradients, and these are terms of a sum.
                (objective * parallel.size).backward()
            losses.append(mean.detach())
        norm = whole(nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip))
        self._optimizer.step()
        if step + 1 < training.max_steps:  # read while the device computes
            self._ahead = step + 1, self._read(step + 1, device)
        *read, length = torch.stack([*losses, *rates, norm]).tolist()
        ran = sum(map(operator.mul, shares, read[len(losses) :]), 0.0)
        loss, rate = parallel.sum([sum(read[: len(losses)], 0.0), ran])
        if not math.isfinite(length):
            raise DivergenceError(
                f"step {step + 1}: the gradient is not finite (loss {loss:g}): lower "
                "learning_rate, or look for extreme values in the data"
            )
        return StepResult(loss=loss, rate=rate if rates else None, steps=int(steps), stop=stops > 0)

    def _read(self, step: int, device: torch.device | str) -> _Share:
        """Cut this process's share of each part; what a part holds does not depend on their number.

        Windows of a batch are sorted by length, so that dealing them out evens the load.
        """
        count, size, rank = (
            self._training.accumulation_steps,
            self._parallel.size,
            self._parallel.rank,
        )
        fixed = self._training.compile != "none"  # graphs know one shape
        parts = [
            self._batches.batch(step, part=number + count * rank, parts=count * size, fixed=fixed)
            for number in range(count)
        ]
        head, positive_weight = self._spread.model.config.head, self._training.positive_weight
        weight = sum(task_weight(head, part, positive_weight).item() for part in parts)
        steps = [steps_of(part) for part in parts]
        if torch.device(device).type == "cuda":
            parts = [part.pinned() for part in parts]
        return _Share(parts, steps, float(weight))

    def _rates(
        self, decisions: Sequence[RoutingDecision], batch: Batch, count: int
    ) -> Float[Tensor, "L M"] | None:
        """Activation rates of a part over all processes, to steer by; None when it is all here."""
        if self._training.target_rate is None or self._parallel.size == 1:
            return None
        rates = settled_rates(decisions, batch.inputs.valid)
        own = (rates.double() * count).flatten().tolist()
        *sums, steps = self._parallel.sum([*own, float(count)])
        return rates.new_tensor(sums).view_as(rates) / max(steps, 1.0)

    def _autocast(self, device: torch.device | str) -> AbstractContextManager[Any]:
        if self._training.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(device).type, torch.bfloat16)


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what one process draws in a step: dropout, and noise of routing."""
    return (seed + 1) * 1_000_003 + step + rank * _RANK_SEEDS


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


def steps_of(batch: Batch) -> int:
    """Time steps of a batch that are no padding."""
    lengths = batch.inputs.lengths
    return batch.mask.numel() if lengths is None else int(lengths.sum())
