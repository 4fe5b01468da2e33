"""A layer on its own: stands where a model of another make has a Transformer block."""

from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.config import HeadConfig, InputConfig, ModelConfig
from sma_core.errors import ShapeError
from sma_core.layer import SMALayer
from sma_core.routing.decision import RoutingDecision


class SMABlock(nn.Module):
    """One `SMALayer` with the interface of a Transformer block: a tensor in, a tensor out.

    It brings its own norm and residual connection. With ``dispatch="capacity"`` it is one static
    graph: ``torch.compile(fullgraph=True)`` and CUDA graphs work.

    Parameters
    ----------
    width
        D.
    index
        Number of this block in its model; the policy `RandomConfig` draws by it.
    **fields
        Fields of `ModelConfig` that speak of a layer: ``pool``, ``policy``, ``bidirectional``,
        ``states``, ``prenorm``, ``dropout``, ``dispatch``, ...

    Attributes
    ----------
    decision : RoutingDecision or None
        What ran in the last forward, with the router's gradient, for traces and regularisers.
        Copies and pickles leave it out.

    Raises
    ------
    ConfigError
        A field is out of range; the message names it.
    """

    def __init__(self, width: int, *, index: int = 0, **fields: Any) -> None:
        super().__init__()
        # A layer reads nothing of what surrounds it, so any inputs and head do.
        around: dict[str, Any] = {
            "inputs": InputConfig(numeric=1),
            "head": HeadConfig(kind="step_classification", outputs=1),
        }
        self.layer = SMALayer(ModelConfig(**around, width=width, **fields), index)
        self.decision: RoutingDecision | None = None

    @no_type_check  # checked below, with errors of our own
    def forward(
        self,
        x: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
        position: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run over T steps.

        Parameters
        ----------
        x
            Residual stream.
        valid
            Which steps are no padding; None when all are.
        position
            Time index of each step; None counts from 0.

        Raises
        ------
        ShapeError
            An argument does not fit; the message names it.
        """
        width = self.layer.config.width
        if x.dim() != 3 or x.shape[2] != width or not x.is_floating_point():
            raise ShapeError(
                f"x: must be [batch, time, {width}] and floating point, not "
                f"{list(x.shape)} {x.dtype}"
            )
        if valid is not None and (valid.shape != x.shape[:2] or valid.dtype != torch.bool):
            raise ShapeError(
                f"valid: must be {list(x.shape[:2])} torch.bool, not "
                f"{list(valid.shape)} {valid.dtype}"
            )
        if position is None:
            position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        elif position.shape != x.shape[:2] or position.dtype != torch.int64:
            raise ShapeError(
                f"position: must be {list(x.shape[:2])} torch.int64, not "
                f"{list(position.shape)} {position.dtype}"
            )
        out, self.decision = self.layer(x, position, valid)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the last decision: a tensor with a gradient cannot be copied."""
        return self.__dict__ | {"decision": None}
