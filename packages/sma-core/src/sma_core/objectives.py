"""What training makes small: the loss of each task, and the terms that regularise routing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.config import HeadConfig
from sma_core.dataset import Batch
from sma_core.routing.decision import RoutingDecision
from sma_core.training_config import TrainingConfig

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
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    if head.kind == "forecast":
        observed = batch.target.isfinite()
        target = batch.target.where(observed, 0.0).clamp(-TARGET_LIMIT, TARGET_LIMIT)
        errors = F.smooth_l1_loss(prediction, target, reduction="none")
        count = observed.sum().float()
        return TaskLoss(errors.where(observed, 0.0).sum(), count, torch.zeros_like(count), count)

    logits, target = prediction.flatten(0, -2), batch.target.flatten()
    known = target >= 0
    weight = _class_weights(target, positive_weight)
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


def task_weight(
    head: HeadConfig, batch: Batch, positive_weight: float | None = None
) -> Float[Tensor, ""]:
    """Sum of the weights of a batch's targets, `TaskLoss.weight`, before there is a prediction."""
    if head.kind == "forecast":
        return batch.target.isfinite().sum().float()
    return _class_weights(batch.target.flatten(), positive_weight).sum()


def _class_weights(target: Int[Tensor, " N"], positive_weight: float | None) -> Float[Tensor, " N"]:
    """Weight of each class; 0 for what is to be left out."""
    return torch.where(target > 0, positive_weight or 1.0, 1.0) * (target >= 0)


def activation_rates(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "L M"]:
    """Share of valid steps at which each sub-module of each layer ran."""
    active = torch.stack([decision.active for decision in decisions]).float()
    if valid is None:
        return active.mean(dim=(1, 2))
    return (active * valid[..., None]).sum(dim=(1, 2)) / valid.sum().clamp_min(1)


def settled_rates(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "L M"]:
    """Activation rates by what a policy will do in evaluation, where it samples in training."""
    settled = [d if d.noiseless is None else replace(d, active=d.noiseless) for d in decisions]
    return activation_rates(settled, valid)


def rate_loss(
    decisions: Sequence[RoutingDecision],
    valid: Bool[Tensor, "B T"] | None,
    target_rate: float,
    rates: Float[Tensor, "L M"] | None = None,
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
    rates : Tensor, optional
        Measured rates, where these decisions are only a part of what was decided; by default
        `settled_rates` of the decisions.
    """
    excess = (settled_rates(decisions, valid) if rates is None else rates) - target_rate
    margins = torch.stack([decision.margin for decision in decisions])  # type: ignore[arg-type]
    margins = margins.to(torch.promote_types(margins.dtype, torch.float32))
    return (excess.detach() * _mean_over_steps(margins, valid)).sum()


def z_loss(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, ""]:
    """Keep router logits small: squared log-sum-exp of each pair, mean over valid steps.

    Summed over layers and sub-modules. Large logits saturate the confidence, which then has no
    gradient, and lose their small differences in narrow dtypes. Zoph et al., "ST-MoE",
    arXiv 2202.08906, eq. 5.

    Parameters
    ----------
    decisions : sequence of RoutingDecision
        One per layer, of a policy with logits.
    valid : Tensor or None
        Which steps are no padding.
    """
    logits = torch.stack([decision.logits for decision in decisions])  # type: ignore[arg-type]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _mean_over_steps(wide.logsumexp(-1).square(), valid).sum()


def routing_entropy(
    decisions: Sequence[RoutingDecision], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, ""]:
    """Entropy of the probability of running in nats: mean over valid steps, summed over the rest.

    At most log 2 for each sub-module of each layer, where every probability is 1/2.

    Parameters
    ----------
    decisions : sequence of RoutingDecision
        One per layer, of a policy with logits.
    valid : Tensor or None
        Which steps are no padding.
    """
    p = torch.stack([decision.probability for decision in decisions])  # type: ignore[arg-type]
    # At exactly 0 or 1 the slope is infinite; a router that sure has no gradient anyway.
    edge = torch.finfo(p.dtype).eps
    p = p.clamp(edge, 1.0 - edge)
    entropy = torch.special.entr(p) + torch.special.entr(1.0 - p)
    return _mean_over_steps(entropy, valid).sum()


def routing_loss(
    decisions: Sequence[RoutingDecision],
    valid: Bool[Tensor, "B T"] | None,
    training: TrainingConfig,
    rates: Float[Tensor, "L M"] | None = None,
) -> Float[Tensor, ""] | float:
    """Add up what routing adds to the loss of a task: weighted regularisers, and auxiliaries.

    Parameters
    ----------
    decisions : sequence of RoutingDecision
        One per layer, in training mode.
    valid : Tensor or None
        Which steps are no padding.
    training : TrainingConfig
        Holds `target_rate` and the weights.
    rates : Tensor, optional
        See `rate_loss`.
    """
    loss: Tensor | float = 0.0
    if training.target_rate is not None:
        loss = loss + training.rate_weight * rate_loss(
            decisions, valid, training.target_rate, rates
        )
    if training.z_weight:
        loss = loss + training.z_weight * z_loss(decisions, valid)
    if training.entropy_weight:
        loss = loss - training.entropy_weight * routing_entropy(decisions, valid)
    return sum((d.auxiliary for d in decisions if d.auxiliary is not None), start=loss)


def _mean_over_steps(
    x: Float[Tensor, "L B T M"], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "L M"]:
    """Mean over the valid steps of a batch; 0 when there are none."""
    if valid is None:
        return x.mean(dim=(1, 2))
    return x.where(valid[..., None], 0.0).sum(dim=(1, 2)) / valid.sum().clamp_min(1)
