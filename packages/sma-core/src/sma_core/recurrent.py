"""The recurrent incumbent: stock gated recurrent units, as plants have run them for years.

Axes: B batch, T time, D width.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.config import GRUConfig
from sma_core.model import SequenceModel, register_architecture
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState


@dataclass
class HiddenState(TensorState):
    """What a layer remembers."""

    hidden: Float[Tensor, "B D"]


class GRUModel(SequenceModel):
    """Layers of gated recurrent units [1]_, each fed by the one below.

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
       machine translation", arXiv 1406.1078.
    """

    config: GRUConfig

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(config)
        # One module a layer, as a stack in one module tells no more than its last step's state,
        # and sequences of a batch may end earlier.
        self.layers = nn.ModuleList(
            nn.GRU(config.width, config.width, batch_first=True) for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def encode(
        self,
        x: Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"] | None,
        layers: list[Any] | None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode`."""
        for i, layer in enumerate(self.layers):
            below = self.dropout(x) if i else x
            before = None if layers is None else layers[i].hidden[None]
            x, _ = layer(below, before)
            if layers is not None:
                layers[i].hidden = _last_valid(x, valid, layers[i].hidden)
        return x, ()

    def encode_step(
        self, x: Float[Tensor, "B D"], position: Int[Tensor, "B"], layers: list[Any]
    ) -> tuple[Float[Tensor, "B D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode_step`."""
        for i, layer in enumerate(cast(list[nn.GRU], list(self.layers))):
            below = self.dropout(x) if i else x
            _, hidden = layer(below[:, None], layers[i].hidden[None])
            x = hidden[0]
            layers[i].hidden.copy_(x)
        return x, ()

    def init_layers(self, batch: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """See `SequenceModel.init_layers`."""
        return [
            HiddenState(torch.zeros(batch, self.config.width, device=device, dtype=dtype))
            for _ in range(self.config.layers)
        ]


def _last_valid(
    x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None, before: Float[Tensor, "B D"]
) -> Float[Tensor, "B D"]:
    """Return the output at each sequence's last valid step; `before` where it has none."""
    if valid is None:
        return x[:, -1].detach().clone()
    taken = valid.sum(1)
    last = x.detach()[torch.arange(len(x), device=x.device), taken - 1]
    return torch.where(taken[:, None] > 0, last, before)


register_architecture(GRUConfig, GRUModel)
