"""A second EMA, over the active rows: time passes only where it runs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.dispatch import Rows
from sma_core.ema import MultiHeadEMA
from sma_core.state import TensorState
from sma_core.submodule_configs import ActiveEMAConfig
from sma_core.submodules.submodule import SubModule, init_linear


@dataclass
class ActiveEMAState(TensorState):
    """State of the recurrence after the last active row."""

    hidden: Float[Tensor, "B D N"]


class ActiveEMA(SubModule):
    """``silu(ema(x)) W_o + b_o``; the recurrence moves on by one at each active row."""

    config: ActiveEMAConfig

    def __init__(self, config: ActiveEMAConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        self.ema = MultiHeadEMA(width, config.states, bidirectional=not causal)
        self.output = nn.Linear(width, width)
        init_linear(self.output)

    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: ActiveEMAState | None = None
    ) -> Float[Tensor, "R D"]:
        """See `SubModule.forward`."""
        hidden = None if state is None else state.hidden
        y, final = self.ema(rows.by_sequence(x), hidden, rows.count)
        if state is not None:
            state.hidden = final.detach()
        return self.output(functional.silu(rows.end_to_end(y)))

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> ActiveEMAState:
        """See `SubModule.init_state`."""
        return ActiveEMAState(hidden=self.ema.init_state(batch, device, dtype))

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: ActiveEMAState | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """See `SubModule.step`."""
        assert state is not None  # noqa: S101  (made by init_state)
        if index is None:
            y = self.ema.step(x, state.hidden)
        else:
            hidden = state.hidden.index_select(0, index)
            y = self.ema.step(x, hidden)
            state.hidden.index_copy_(0, index, hidden)
        return self.output(functional.silu(y))
