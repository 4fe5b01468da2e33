"""What every routing policy is."""

from abc import abstractmethod
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sma_core.routing.decision import RoutingDecision


class Policy(nn.Module):
    """Base of routing policies.

    A policy decides about a step from that step alone, so that a model runs the same in a stream
    and in parallel.

    Parameters
    ----------
    config
        The policy's own configuration.
    width
        D, width of the stream that the logits come from.
    pool
        M, number of sub-modules.
    layer
        Index of the layer.
    """

    def __init__(self, config: Any, *, width: int, pool: int, layer: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.pool = pool
        self.layer = layer

    @abstractmethod
    def forward(
        self, logits: Float[Tensor, "B T M 2"], position: Int[Tensor, "B T"]
    ) -> RoutingDecision:
        """Decide at every step.

        Parameters
        ----------
        logits
            Router logits, index 0 = skip, 1 = run.
        position
            Time index of each step.
        """
