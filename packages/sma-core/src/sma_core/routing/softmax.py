"""Policies whose confidence is a softmax of the logits."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sma_core.config import TemperedSoftmaxConfig
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import Policy


class TemperedSoftmax(Policy):
    """Run where the run logit is larger; weigh by the tempered softmax (Ren et al., eq. 5 to 7).

    The decision has no gradient and no estimator of one: the router learns through the
    confidence alone. Each sub-module has its own temperature ``exp(theta)``, learned.
    """

    config: TemperedSoftmaxConfig

    def __init__(self, config: TemperedSoftmaxConfig, *, width: int, pool: int, layer: int) -> None:
        super().__init__(config, width=width, pool=pool, layer=layer)
        self.theta = nn.Parameter(torch.empty(pool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at a temperature of ``init_scale * sqrt(width)``."""
        nn.init.constant_(self.theta, math.log(self.config.init_scale * math.sqrt(self.width)))

    def forward(
        self, logits: Float[Tensor, "B T M 2"], position: Int[Tensor, "B T"]
    ) -> RoutingDecision:
        """See `Policy.forward`; `position` plays no part."""
        skip, run = logits.to(torch.promote_types(logits.dtype, torch.float32)).unbind(-1)
        # A softmax over two logits is a sigmoid of their difference.
        margin = (run - skip) / torch.exp(self.theta)
        return RoutingDecision(
            active=run > skip,
            confidence=torch.sigmoid(margin.abs()),
            logits=logits,
            probability=torch.sigmoid(margin),
        )
