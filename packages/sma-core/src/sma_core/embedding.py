"""From channels to the residual stream: numeric with missing indicators, plus categorical."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sma_core.config import InputConfig
from sma_core.errors import ShapeError
from sma_core.inputs import Inputs

# Beyond this lie fill values and corrupt readings, whose squares would overflow float32.
LARGEST_VALUE = 1e15


class Embedding(nn.Module):
    """Embed a time step: one linear map of the numeric channels, one table per categorical one.

    A numeric value that is not finite, or larger in magnitude than `largest_value` of the type that
    it is computed in, counts as missing: it enters as 0 and a second feature of its channel, the
    indicator, as 1.

    Parameters
    ----------
    config
        The channels.
    width
        D.
    """

    def __init__(self, config: InputConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.numeric = nn.Linear(2 * config.numeric, width) if config.numeric else None
        self.categorical = nn.ModuleList(nn.Embedding(n, width) for n in config.categorical)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a variance near 1 in the residual stream, for standardised channels."""
        sources = bool(self.config.numeric) + len(self.config.categorical)
        if self.numeric is not None:
            nn.init.normal_(self.numeric.weight, std=(sources * self.config.numeric) ** -0.5)
            nn.init.zeros_(self.numeric.bias)
        for table in self.categorical:
            nn.init.normal_(table.weight, std=sources**-0.5)  # type: ignore[union-attr]

    def forward(
        self, inputs: Inputs, valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Embed every step; what stands in padded steps is never read.

        Raises
        ------
        ShapeError
            The channels are not the model's, or an index lies outside its vocabulary.
        """
        inputs.check(self.config)
        parts: list[Tensor] = []
        if self.numeric is not None and inputs.numeric is not None:
            x = inputs.numeric.to(self.numeric.weight.dtype)
            if valid is not None:
                x = x.where(valid[..., None], 0.0)
            known = x.where(x.abs() <= largest_value(x), 0.0)
            parts.append(self.numeric(torch.cat((known, known != x), dim=-1)))
        if inputs.categorical is not None:
            indices = inputs.categorical.to(torch.int64)
            if valid is not None:
                indices = indices.where(valid[..., None], 0)
            for i, table in enumerate(self.categorical):
                try:
                    parts.append(table(indices[..., i]))
                except IndexError:
                    size = self.config.categorical[i]
                    raise ShapeError(
                        f"categorical: an index of channel {i} lies outside 0..{size - 1}"
                    ) from None
        return sum(parts[1:], start=parts[0])


def largest_value(x: Tensor) -> float:
    """Give the largest value that counts where products of `x` are computed.

    Its square has a place in that type: 256 for float16, under autocast too.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return min(LARGEST_VALUE, torch.finfo(dtype).max ** 0.5)


class Head(nn.Linear):
    """Linear map to the outputs, at every step or of the mean over steps."""

    def reset_parameters(self) -> None:
        """Draw small truncated normal weights, so that a fresh model predicts near zero."""
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.bias)


def masked_sum(
    x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None
) -> Float[Tensor, "B D"]:
    """Sum over the valid steps, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if valid is None:
        return x.sum(1)
    return x.where(valid[..., None], 0.0).sum(1)
