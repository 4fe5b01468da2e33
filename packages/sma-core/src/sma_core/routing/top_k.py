"""Top-k over the sequence, and the causal predictor that stands in for it in a stream.

Raposo et al., "Mixture-of-Depths", arXiv 2404.02258.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.operations import Extent, Operation, linear
from sma_core.policy_configs import TopKConfig
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import RouterInputs, wide_margin
from sma_core.routing.softmax import TemperedPolicy

_RATE_BITS = 32


class TopK(TemperedPolicy):
    """Run the k steps of each sequence with the largest margins, of equals the earlier ones.

    Of n valid steps, ``k = floor(rate * n + 1/2)`` run, each sub-module by itself. The weight of a
    step that runs is the probability of running, a tempered softmax of its own logits.

    A linear predictor reads what the router reads, cut off from its gradient, and learns by cross
    entropy (`RoutingDecision.auxiliary`) whether a step is among the k. It decides, step by step,
    in streams and by default in evaluation, where its own output is positive; the rate is then as
    exact as the predictor is.
    """

    config: TopKConfig

    def __init__(self, config: TopKConfig, *, width: int, pool: int, layer: int) -> None:
        super().__init__(config, width=width, pool=pool, layer=layer)
        self.predictor = nn.Linear(width, pool)
        nn.init.trunc_normal_(self.predictor.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.predictor.bias)

    def route(self, inputs: RouterInputs, state: Any | None = None) -> RoutingDecision:
        """See `Policy.route`; a training step with a state takes its k from the chunk."""
        margin = wide_margin(inputs.logits)
        predicted = self.predictor(inputs.features.detach())
        ahead = self.config.evaluation == "top_k" and not inputs.streaming
        auxiliary = None
        if inputs.training or ahead:
            active = largest(margin, inputs.valid, self.config.rate)
            if inputs.training:
                auxiliary = _cross_entropy(predicted, active, inputs.valid)
        else:
            active = predicted > 0
        probability = torch.sigmoid(self.tempered(margin))
        return RoutingDecision(
            active=active,
            confidence=torch.where(active, probability, 1 - probability),
            logits=inputs.logits,
            probability=probability,
            auxiliary=auxiliary,
        )

    @classmethod
    def held_rate(cls, config: TopKConfig) -> float | None:
        """See `Policy.held_rate`."""
        return config.rate

    @classmethod
    def flops(cls, config: TopKConfig, *, width: int, pool: int) -> int:
        """See `Policy.flops`: the predictor."""
        return 2 * width * pool

    @classmethod
    def operations(
        cls, config: TopKConfig, *, width: int, pool: int, extent: Extent
    ) -> list[Operation]:
        """See `Policy.operations`: the predictor, its loss, and the decision."""
        predict = linear("predict", extent, width, pool)
        return [
            # The gradient of the predictor ends in its weights.
            replace(predict, back=predict.forward),
            *super().operations(config, width=width, pool=pool, extent=extent),
            Operation(
                name="cross entropy",
                read=extent.rows * pool * (extent.narrow + 1),
                written=0.0,
                kept=extent.rows * pool * 2 * extent.wide,
            ),
        ]


def largest(
    margin: Float[Tensor, "B T M"], valid: Bool[Tensor, "B T"] | None, rate: float
) -> Bool[Tensor, "B T M"]:
    """Mark the steps of each sequence with the largest margins, a share `rate` of the valid ones.

    Parameters
    ----------
    margin
        What to compare.
    valid
        Which steps are no padding; None when all are.
    rate
        Share, counted in 2^-32: whole numbers round alike on every device.
    """
    margin = margin.detach()
    if valid is None:
        steps = torch.full((margin.shape[0],), margin.shape[1], device=margin.device)
    else:
        # Behind every other step; a stable sort keeps padding behind steps of -inf, too.
        margin, steps = margin.masked_fill(~valid.unsqueeze(-1), -torch.inf), valid.sum(1)
    order = margin.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(margin.shape[1], device=margin.device) < kept(steps, rate)[:, None]
    return torch.zeros_like(order, dtype=torch.bool).scatter(
        1, order, first.unsqueeze(-1).expand_as(order)
    )


def kept(steps: Int[Tensor, "B"], rate: float) -> Int[Tensor, "B"]:
    """K = floor(rate * n + 1/2) of n steps."""
    half = 2 ** (_RATE_BITS - 1)
    return (steps * round(rate * 2**_RATE_BITS) + half) >> _RATE_BITS


def _cross_entropy(
    predicted: Float[Tensor, "B T M"],
    target: Bool[Tensor, "B T M"],
    valid: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, ""]:
    """Mean over valid steps, summed over sub-modules."""
    wide = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    losses = functional.binary_cross_entropy_with_logits(
        wide, target.to(wide.dtype), reduction="none"
    ).sum(-1)
    if valid is None:
        return losses.mean()
    return losses.where(valid, 0.0).sum() / valid.sum().clamp_min(1)
