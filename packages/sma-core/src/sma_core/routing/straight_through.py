"""Policies that weigh what runs by 1 and lend that 1 the gradient of a probability.

With margin m = run logit - skip logit and temperature tau, a step that runs is weighed by

    c = 1 + p - stop_gradient(p)        value 1, gradient that of p

where p is the probability of running at that temperature. A step that is skipped adds nothing to
the output, and so nothing to the gradient: a dense straight-through estimator would have to compute
every sub-module at every step to know what was missed, which is the work that routing saves. The
router thus hears from the steps that ran, and their sum decides where to run next.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import Policy, RouterInputs, wide_margin


class StraightThrough(Policy):
    """Base: the weight of value 1, and the temperature with its schedule.

    The temperature shapes gradients alone. What a model computes in evaluation does not depend on
    it, so that a checkpoint need not hold how far its schedule had come.
    """

    weighs = False
    temperature: Tensor

    def __init__(self, config: Any, *, width: int, pool: int, layer: int) -> None:
        super().__init__(config, width=width, pool=pool, layer=layer)
        # A tensor, so that a compiled model sees a new value and not a new constant.
        start = torch.tensor(self.config.temperature.start)
        self.register_buffer("temperature", start, persistent=False)

    def set_progress(self, share: float) -> None:
        """See `Policy.set_progress`."""
        self.temperature.fill_(self.config.temperature.at(share))

    def route(self, inputs: RouterInputs, state: Any | None = None) -> RoutingDecision:
        """See `Policy.route`."""
        margin = wide_margin(inputs.logits)
        noisy = self.sample(margin) if inputs.training else margin
        tau = self.temperature if inputs.training else self.config.temperature.final
        soft = torch.sigmoid(noisy / tau)
        return RoutingDecision(
            active=noisy > 0,
            # In this order the value is 1 to the last bit.
            confidence=1 + (soft - soft.detach()),
            logits=inputs.logits,
            probability=torch.sigmoid(margin),
            noiseless=None if noisy is margin else margin > 0,
        )

    def sample(self, margin: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Margin that a training step decides by; by itself there is no noise."""
        return margin


class Sigmoid(StraightThrough):
    """Run where m > 0; p = sigmoid(m / tau).

    Bengio, Leonard and Courville, arXiv 1308.3432; a falling temperature is the slope annealing
    of Chung, Ahn and Bengio, arXiv 1609.01704.
    """


class Gumbel(StraightThrough):
    """Run with probability sigmoid(m) in training, where m > 0 in evaluation.

    A Gumbel variable on each logit and an argmax draw from their softmax. The difference of two
    such variables is logistic: with u uniform in (0, 1), g = log(u) - log(1 - u), a training
    step runs where m + g > 0, and p = sigmoid((m + g) / tau). In evaluation g = 0.

    Jang, Gu and Poole, arXiv 1611.01144; Maddison, Mnih and Teh, arXiv 1611.00712. The noise
    comes from torch's generator of the device.
    """

    def sample(self, margin: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """See `StraightThrough.sample`."""
        edge = torch.finfo(margin.dtype).eps
        return margin + torch.rand_like(margin).clamp(edge, 1 - edge).logit()
