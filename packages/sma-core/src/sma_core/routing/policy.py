"""What every routing policy is."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.operations import Extent, Operation
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState


@dataclass(frozen=True, kw_only=True)
class RouterInputs:
    """What a layer tells its policy about T steps.

    Parameters
    ----------
    logits
        Router logits, index 0 = skip, 1 = run.
    features
        What the logits are a linear map of.
    position
        Time index of each step.
    valid
        Which steps are no padding; None when all are.
    training
        Whether noise and looking ahead are allowed.
    streaming
        Whether the steps continue a stream, which the policy's state is about.
    """

    logits: Float[Tensor, "B T M 2"]
    features: Float[Tensor, "B T D"]
    position: Int[Tensor, "B T"]
    valid: Bool[Tensor, "B T"] | None = None
    training: bool = False
    streaming: bool = False


class Policy(nn.Module):
    """Base of routing policies.

    A policy that decides about a step from that step alone defines `forward` and nothing else. One
    that looks at other steps, or draws random numbers in training, overrides `route`; what it has
    to remember from chunk to chunk is its state (`init_state`). In evaluation a policy must
    decide the same in one pass, in chunks and step by step.

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

    # Whether the policy reads its logits, so that their regularisers have something to act on.
    learns: ClassVar[bool] = True
    # Whether what runs is weighed by the probability of running; by 1 otherwise. Read by `explain`.
    weighs: ClassVar[bool] = True

    def __init__(self, config: Any, *, width: int, pool: int, layer: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.pool = pool
        self.layer = layer

    def forward(
        self, logits: Float[Tensor, "B T M 2"], position: Int[Tensor, "B T"]
    ) -> RoutingDecision:
        """Decide at every step from that step alone.

        Parameters
        ----------
        logits
            Router logits, index 0 = skip, 1 = run.
        position
            Time index of each step.
        """
        raise NotImplementedError(f"{type(self).__name__} decides in `route`")

    def route(self, inputs: RouterInputs, state: Any | None = None) -> RoutingDecision:
        """Decide at every step; this is what a layer calls.

        Parameters
        ----------
        inputs
            The steps.
        state
            Made by `init_state`, to continue from and to update in place; None starts afresh.
        """
        return self(inputs.logits, inputs.position)

    def init_state(
        self, batch: int, device: torch.device, dtype: torch.dtype
    ) -> TensorState | None:
        """Make the state before the first step; None for a policy that remembers nothing."""
        return None

    def set_progress(self, share: float) -> None:
        """Tell schedules which share of the training steps is done; by itself a policy has none."""

    @classmethod
    def held_rate(cls, config: Any) -> float | None:
        """Activation rate that the policy keeps by itself; None when it is left to training."""
        return None

    @classmethod
    def flops(cls, config: Any, *, width: int, pool: int) -> int:
        """FLOPs of matrix products of the policy's own, for one step."""
        return 0

    @classmethod
    def operations(cls, config: Any, *, width: int, pool: int, extent: Extent) -> list[Operation]:
        """List what the policy reads, writes and keeps in one pass.

        Parameters
        ----------
        config
            The policy's configuration.
        width
            D.
        pool
            M.
        extent
            The steps.
        """
        return [decide(extent, pool, kept=2)]


def decide(extent: Extent, pool: int, *, kept: int, masks: int = 0) -> Operation:
    """Describe what turns logits into decisions, confidences and probabilities.

    Parameters
    ----------
    extent
        The steps.
    pool
        M.
    kept
        Numbers kept for backward, of each step and sub-module.
    masks
        Bytes kept beside them.
    """
    choices = extent.rows * pool
    return Operation(
        name="decide",
        read=choices * 2 * extent.narrow,
        written=choices * (1 + 2 * extent.wide),
        kept=choices * (kept * extent.wide + masks),
        # Gradients of confidences, to those of logits.
        back=choices * 2 * (extent.wide + 2 * extent.narrow),
    )


def wide_margin(logits: Float[Tensor, "*S M 2"]) -> Float[Tensor, "*S M"]:
    """Run logit minus skip logit, in float32 at least."""
    skip, run = logits.to(torch.promote_types(logits.dtype, torch.float32)).unbind(-1)
    return run - skip
