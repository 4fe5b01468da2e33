"""SwiGLU feed-forward unit (Shazeer, arXiv 2002.05202), row by row."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sma_core.config import SwiGLUConfig
from sma_core.submodules.submodule import RowwiseSubModule, init_linear


class SwiGLU(RowwiseSubModule):
    """``(silu(x W_g + b_g) * (x W_v + b_v)) W_o + b_o``: needs no history."""

    config: SwiGLUConfig

    def __init__(self, config: SwiGLUConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        self.project = nn.Linear(width, 2 * config.hidden_width)
        self.output = nn.Linear(config.hidden_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw truncated normal weights; biases start at zero."""
        init_linear(self.project)
        init_linear(self.output)

    def transform(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """See `RowwiseSubModule.transform`."""
        gate, value = self.project(x).chunk(2, dim=-1)
        return self.output(functional.silu(gate) * value)
