"""Policies whose confidence is a softmax of the logits at a learned temperature."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sma_core.config import TemperedSoftmaxConfig
from sma_core.operations import Extent, Operation
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import Policy, decide, wide_margin


class TemperedPolicy(Policy):
    """Base of policies with a temperature ``exp(theta)`` for each sub-module, learned.

    Their configuration has the field `init_scale`.
    """

    def __init__(self, config: Any, *, width: int, pool: int, layer: int) -> None:
        super().__init__(config, width=width, pool=pool, layer=layer)
        self.theta = nn.Parameter(torch.empty(pool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at a temperature of ``init_scale * sqrt(width)``."""
        nn.init.constant_(self.theta, math.log(self.config.init_scale * math.sqrt(self.width)))

    def tempered(self, margin: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Margin over temperature: a softmax over two logits is a sigmoid of it."""
        return margin / torch.exp(self.theta)

    @classmethod
    def operations(cls, config: Any, *, width: int, pool: int, extent: Extent) -> list[Operation]:
        """See `Policy.operations`: the margin, its probability, and which of two was taken."""
        return [decide(extent, pool, kept=2, masks=1)]


class TemperedSoftmax(TemperedPolicy):
    """Run where the run logit is larger; weigh by the tempered softmax (Ren et al., eq. 5 to 7).

    The decision has no gradient and no estimator of one: the router learns through the
    confidence alone.
    """

    config: TemperedSoftmaxConfig

    def forward(
        self, logits: Float[Tensor, "B T M 2"], position: Int[Tensor, "B T"]
    ) -> RoutingDecision:
        """See `Policy.forward`; `position` plays no part."""
        margin = wide_margin(logits)
        tempered = self.tempered(margin)
        return RoutingDecision(
            active=margin > 0,
            confidence=torch.sigmoid(tempered.abs()),
            logits=logits,
            probability=torch.sigmoid(tempered),
        )

    @classmethod
    def operations(cls, config: Any, *, width: int, pool: int, extent: Extent) -> list[Operation]:
        """See `Policy.operations`: the margin before and after its temperature, two sigmoids."""
        return [decide(extent, pool, kept=4)]
