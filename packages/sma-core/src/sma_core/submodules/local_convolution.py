"""Depthwise-separable convolution (Howard et al., arXiv 1704.04861) over active rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.dispatch import Rows
from sma_core.state import TensorState
from sma_core.submodule_configs import LocalConvolutionConfig
from sma_core.submodules.submodule import SubModule, init_linear


@dataclass
class ConvolutionState(TensorState):
    """The last K - 1 active rows of each sequence, oldest first, zeros before the first.

    The rows move up by one at each step: that costs no more than reading them, which the
    convolution does anyway, and they need no order of their own.
    """

    rows: Float[Tensor, "B S D"]


class LocalConvolution(SubModule):
    """``silu(sum_j tap_j * x_(i - j) + b) W_o + b_o``, j counted in active rows of a sequence.

    Causal: j = 0 .. K - 1, and tap j is row j of `taps`. Bidirectional: j = 1 - K .. K - 1.
    """

    config: LocalConvolutionConfig

    def __init__(self, config: LocalConvolutionConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        reach = config.kernel_size - 1
        self.offsets = range(0 if causal else -reach, reach + 1)
        self.taps = nn.Parameter(torch.empty(len(self.offsets), width))
        self.bias = nn.Parameter(torch.empty(width))
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw taps so that the sum keeps the size of a row; biases start at zero."""
        nn.init.normal_(self.taps, std=len(self.offsets) ** -0.5)
        nn.init.zeros_(self.bias)
        init_linear(self.output)

    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: ConvolutionState | None = None
    ) -> Float[Tensor, "R D"]:
        """See `SubModule.forward`."""
        place = rows.place
        total = x * self.taps[self.offsets.index(0)]
        for tap, offset in zip(self.taps, self.offsets, strict=True):
            if offset > 0:
                shifted = functional.pad(x, (0, 0, offset, 0))[: x.shape[0]]
                before = self._before(x, rows, offset, state)
                total = total + tap * torch.where((place >= offset).unsqueeze(1), shifted, before)
            elif offset < 0:
                shifted = functional.pad(x, (0, 0, 0, -offset))[-offset:]
                inside = place - offset < rows.count.index_select(0, rows.sequence)
                total = total + tap * shifted.where(inside.unsqueeze(1), 0.0)
        if state is not None:
            self._extend(state, x, rows)
        return self.output(functional.silu(total + self.bias))

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> ConvolutionState:
        """See `SubModule.init_state`."""
        shape = (batch, self.config.kernel_size - 1, self.width)
        return ConvolutionState(rows=torch.zeros(shape, device=device, dtype=dtype))

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: ConvolutionState | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """See `SubModule.step`."""
        assert state is not None  # noqa: S101  (made by init_state)
        past = state.rows if index is None else state.rows.index_select(0, index)
        span = torch.cat((past, x.to(past.dtype).unsqueeze(1)), dim=1)
        if index is None:
            state.rows.copy_(span[:, 1:])
        else:
            state.rows.index_copy_(0, index, span[:, 1:])
        total = torch.linalg.vecdot(span.to(x.dtype), self.taps.flip(0), dim=1)
        return self.output(functional.silu(total + self.bias))

    def _before(
        self, x: Float[Tensor, "R D"], rows: Rows, offset: int, state: ConvolutionState | None
    ) -> Tensor:
        """Rows from before the chunk, for those of it that look `offset` rows back to them."""
        if state is None:
            return x.new_zeros(())
        kept = state.rows.shape[1]
        slot = (kept + rows.place - offset).clamp(0, kept - 1) + rows.sequence * kept
        return state.rows.flatten(0, 1).index_select(0, slot).to(x.dtype)

    def _extend(self, state: ConvolutionState, x: Float[Tensor, "R D"], rows: Rows) -> None:
        """Take in the rows of a chunk: row n of it, or what was kept where n is negative."""
        batch, kept = state.rows.shape[:2]
        slot = torch.arange(kept, device=x.device)
        number = rows.count[:, None] - kept + slot  # [B, S]
        old = torch.arange(batch, device=x.device)[:, None] * kept + kept + number
        new = batch * kept + rows.start[:, None] + number
        source = torch.where(number < 0, old, new).flatten()
        both = torch.cat((state.rows.flatten(0, 1), x.detach().to(state.rows.dtype)))
        state.rows = both.index_select(0, source).view(state.rows.shape)
