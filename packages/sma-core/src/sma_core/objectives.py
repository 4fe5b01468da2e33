"""What training makes small: the loss of each task, and the term that steers activation rates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sma_core.config import HeadConfig
from sma_core.dataset import Batch
from sma_core.routing.decision import RoutingDecision

# Telemetry has spikes of hundreds of standard deviations. A squared error would let a handful of
# them decide every gradient, so the forecast loss is quadratic up to 1 and linear beyond, and a
# target counts as at most this far from the centre, in scaled units.
TARGET_LIMIT = 10.0


@dataclass(frozen=True)
class TaskLoss:
    """Loss of a batch, as sums so that batches of different sizes add up to an exact mean.

    Parameters
    ----------
    total : Tensor
        Weighted sum of the losses of all that was predicted.
    weight : Tensor
        Sum of the weights.
    correct : Tensor
        How many classes were right; 0 in a forecast.
    count : Tensor
        How many values (forecast) or classes were predicted.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    count: Float[Tensor, ""]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The loss; 0 when there was nothing to predict."""
        return self.total / self.weight.clamp_min(1e-9)


def task_loss(
    head: HeadConfig,
    prediction: Float[Tensor, "B T O"] | Float[Tensor, "B O"],
    batch: Batch,
    positive_weight: float | None = None,
) -> TaskLoss:
    """Compare a prediction with a batch's target.

    forecast: smooth L1 on clipped targets, over observed channels. Classification: cross entropy,
    or binary cross entropy when there is one output; targets of -1 are left out.

    Parameters
    ----------
    head : HeadConfig
        Task and number of outputs.
    prediction : Tensor
        Of the model, for ``batch.inputs``.
    batch : Batch
        Holds the target.
    positive_weight : float, optional
        Weight of every class but 0, against 1; 1 by default.
    """
    if head.kind == "forecast":
        observed = batch.target.isfinite()
        target = batch.target.where(observed, 0.0).clamp(-TARGET_LIMIT, TARGET_LIMIT)
        errors = F.smooth_l1_loss(prediction, target, reduction="none")
        count = observed.sum().float()
        return TaskLoss(errors.where(observed, 0.0).sum(), count, torch.zeros_like(count), count)

    logits, target = prediction.flatten(0, -2), batch.target.flatten()
    known = target >= 0
    weight = torch.where(target > 0, positive_weight or 1.0, 1.0) * known
    if head.outputs == 1:
        logits = logits.squeeze(-1)
        positive = target > 0
        losses = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        right = (logits > 0) == positive
    else:
        losses = F.cross_entropy(logits, target, ignore_index=-1, reduction="none")
        right = logits.argmax(-1) == target
    return TaskLoss(
        total=(losses * weight).sum(),
        weight=weight.sum(),
        correct=(right & known).sum().float(),
        count=known.sum().float(),
    )


def activation_rates(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "L M"]:
    """Share of valid steps at which each sub-module of each layer ran."""
    active = torch.stack([decision.active for decision in decisions]).float()
    if valid is None:
        return active.mean(dim=(1, 2))
    return (active * valid[..., None]).sum(dim=(1, 2)) / valid.sum().clamp_min(1)


def rate_loss(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None, target_rate: float
) -> Float[Tensor, ""]:
    """Steer the share of steps at which each sub-module runs towards a target.

    The decision is an argmax, so the mean probability says little about how often a sub-module
    runs: half of the steps may run at p = 0.51 each. This term is an integral controller instead.
    Its gradient moves the run-minus-skip margin of all steps alike, downwards in proportion to how
    much the measured rate exceeds the target, upwards when it falls short, and rests only where
    the measured rate is the target. Its value is no distance and can be negative.

    Parameters
    ----------
    decisions : sequence of RoutingDecision
        One per layer, of a policy with logits.
    valid : Tensor or None
        Which steps are no padding.
    target_rate : float
        In [0, 1].
    """
    excess = activation_rates(decisions, valid) - target_rate
    margins = torch.stack([decision.margin for decision in decisions])  # type: ignore[arg-type]
    if valid is None:
        mean = margins.mean(dim=(1, 2))
    else:
        mean = margins.where(valid[..., None], 0.0).sum(dim=(1, 2)) / valid.sum().clamp_min(1)
    return (excess.detach() * mean).sum()
