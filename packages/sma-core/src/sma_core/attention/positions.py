"""How attention knows where a row lies: rotate queries and keys, or add a bias to the scores."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sma_core.config import GatedAttentionConfig


class PositionScheme(nn.Module):
    """Base of position schemes; a scheme does one of two things, the other stays as it is here.

    Parameters
    ----------
    config
        The attention it serves.
    causal
        Whether keys lie only at or before the query.
    """

    uses_rows: ClassVar[bool] = False  # whether `bias` reads distances in active rows
    uses_time: ClassVar[bool] = False  # whether it reads distances in time

    def __init__(self, config: GatedAttentionConfig, *, causal: bool) -> None:
        super().__init__()

    def rotate(self, x: Float[Tensor, "R 2 Z"], position: Int[Tensor, "R"]) -> Tensor:
        """Turn queries and keys by their time index."""
        return x

    def bias(self, rows: Tensor | None, time: Tensor | None) -> Tensor | None:
        """Score to add.

        Parameters
        ----------
        rows
            Distance from key to query in active rows, any shape; None unless `uses_rows`.
        time
            The same in time steps; None unless `uses_time`.
        """
        return None


class Rotary(PositionScheme):
    """Rotate interleaved pairs by the time index (Su et al., arXiv 2104.09864), theta 10,000."""

    def __init__(self, config: GatedAttentionConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self._width = config.query_width
        self._frequency = self._frequencies(None)

    def _frequencies(self, device: torch.device | None) -> Float[Tensor, "pairs"]:
        exponent = torch.arange(0, self._width, 2, dtype=torch.float64, device=device)
        return 10_000 ** (-exponent / self._width)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Go where the weights go. A buffer would, too, but a cast of the model would round it."""
        super()._apply(fn, recurse)
        self._frequency = self._frequencies(fn(self._frequency).device)
        return self

    def rotate(self, x: Float[Tensor, "R 2 Z"], position: Int[Tensor, "R"]) -> Tensor:
        """See `PositionScheme.rotate`."""
        if self._frequency.device != x.device:  # weights can be moved one by one, past `_apply`
            self._frequency = self._frequencies(x.device)
        # Angles in float64: a stream's index outgrows the 24 bits of float32.
        angle = position.view(-1, 1, 1) * self._frequency
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.compiler.is_compiling():  # no compiler generates complex products; eager is faster
            cos, sin = angle.cos().to(wide), angle.sin().to(wide)
            even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
            turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
            return turned.flatten(-2).to(x.dtype)
        turn = torch.polar(angle.new_ones(()), angle).to(wide.to_complex())
        pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class _TableBias(PositionScheme):
    """A learned bias by clamped distance: one side when causal, else from -(n-1) to n-1."""

    def __init__(self, entries: int, config: GatedAttentionConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self._low = 0 if causal else 1 - entries
        self._high = entries - 1
        self.table = nn.Parameter(torch.empty(self._high - self._low + 1))
        nn.init.normal_(self.table, std=0.02)

    def _look_up(self, distance: Tensor) -> Tensor:
        index = distance.clamp(self._low, self._high) - self._low
        # index_select, as its backward is an order of magnitude faster than that of indexing.
        return self.table.index_select(0, index.flatten()).view(index.shape)


class Simple(_TableBias):
    """A learned bias by distance in time; distances beyond the table share its end values."""

    uses_time = True

    def __init__(self, config: GatedAttentionConfig, *, causal: bool) -> None:
        super().__init__(config.max_positions, config, causal=causal)

    def bias(self, rows: Tensor | None, time: Tensor | None) -> Tensor | None:
        """See `PositionScheme.bias`."""
        assert time is not None  # noqa: S101  (uses_time)
        return self._look_up(time)


class Local(_TableBias):
    """A learned bias by distance in active rows, which the window bounds."""

    uses_rows = True

    def __init__(self, config: GatedAttentionConfig, *, causal: bool) -> None:
        super().__init__(config.window + 1, config, causal=causal)

    def bias(self, rows: Tensor | None, time: Tensor | None) -> Tensor | None:
        """See `PositionScheme.bias`."""
        assert rows is not None  # noqa: S101  (uses_rows)
        return self._look_up(rows)


_SCHEMES: dict[str, type[PositionScheme]] = {"rotary": Rotary, "simple": Simple, "local": Local}


def build_positions(config: GatedAttentionConfig, *, causal: bool) -> PositionScheme:
    """Make the position scheme that `config.position` names."""
    return _SCHEMES[config.position](config, causal=causal)
