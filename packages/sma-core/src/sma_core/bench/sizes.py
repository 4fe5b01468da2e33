"""The widths of the benchmarked layer, and the layers that have them."""

from dataclasses import asdict, dataclass
from typing import Any

from sma_core.block import SMABlock
from sma_core.config import GatedAttentionConfig


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Widths of a layer with one gated attention: causal, rotary, softmax.

    Parameters
    ----------
    width
        D.
    query_width, value_width
        Z and H.
    states
        N, EMA states of a channel.
    window
        W.
    """

    width: int = 512
    query_width: int = 128
    value_width: int = 1024
    states: int = 16
    window: int = 256

    @property
    def attention(self) -> GatedAttentionConfig:
        """The pool's one member."""
        return GatedAttentionConfig(
            query_width=self.query_width,
            value_width=self.value_width,
            window=self.window,
            position="rotary",
            score="softmax",
        )

    def fields(self, **fields: Any) -> dict[str, Any]:
        """Fields of a `ModelConfig`, with further ones."""
        return {"pool": (self.attention,), "states": self.states} | fields

    def block(self, **fields: Any) -> SMABlock:
        """Make a layer that stands alone; `fields` are those of `SMABlock`."""
        return SMABlock(self.width, **self.fields(**fields))

    def as_json(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)
