"""Multi-head softmax attention (Vaswani et al., arXiv 1706.03762) over all active rows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.attention import AttentionCache, Rotary, RowBlocks
from sma_core.config import GatedAttentionConfig
from sma_core.dispatch import Rows
from sma_core.submodule_configs import FullAttentionConfig
from sma_core.submodules.ring import RingSubModule
from sma_core.submodules.submodule import init_linear


class FullAttention(RingSubModule):
    """A row sees the newest `max_rows` active rows up to itself: all, while there are no more."""

    config: FullAttentionConfig

    def __init__(self, config: FullAttentionConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        inner = config.heads * config.head_width
        self.project = nn.Linear(width, 3 * inner)
        self.positions = Rotary(GatedAttentionConfig(query_width=config.head_width), causal=causal)
        self.output = nn.Linear(inner, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw truncated normal weights; biases start at zero."""
        init_linear(self.project)
        init_linear(self.output)

    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: AttentionCache | None = None
    ) -> Float[Tensor, "R D"]:
        """See `SubModule.forward`."""
        query, key, value = self._project(x, rows.position)
        group, new = rows.group, None
        if state is not None:
            joined = state.join(rows, key, value)
            state.extend(rows, key, value)
            group, new, key, value = joined.group, joined.new, joined.key, joined.value
            query = torch.zeros_like(key).index_copy(0, new, query)
        blocks = RowBlocks(group, window=self.config.max_rows - 1, causal=self.causal)
        seen = functional.scaled_dot_product_attention(
            self._heads(blocks.queries(query)),
            self._heads(blocks.keys(key)),
            self._heads(blocks.keys(value)),
            attn_mask=~blocks.hidden.unsqueeze(1),
        )
        seen = blocks.rows(seen.transpose(1, 2).flatten(2))
        return self.output(seen if new is None else seen.index_select(0, new))

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> AttentionCache:
        """See `SubModule.init_state`."""
        inner = self.config.heads * self.config.head_width
        slots = self.config.max_rows
        return AttentionCache.fresh(batch, slots, inner, inner, device=device, dtype=dtype)

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: AttentionCache | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """See `SubModule.step`."""
        assert state is not None  # noqa: S101  (made by init_state)
        query, key, value = self._project(x, position)
        ring = state.push(key, value, position, index)
        seen = functional.scaled_dot_product_attention(
            self._heads(query.to(ring.key.dtype).unsqueeze(1)),
            self._heads(ring.key),
            self._heads(ring.value),
            attn_mask=~ring.empty[:, None, None],
        )
        return self.output(seen.transpose(1, 2).flatten(1).to(x.dtype))

    def _project(
        self, x: Float[Tensor, "R D"], position: Int[Tensor, "R"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query and key, turned by their time index, and value of each row: all heads in one."""
        heads = self.config.heads
        query, key, value = self.project(x).chunk(3, dim=-1)
        both = torch.stack((query, key), dim=1).unflatten(2, (heads, -1)).transpose(1, 2)
        turned = self.positions.rotate(both.flatten(0, 1), position.repeat_interleave(heads))
        query, key = turned.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2).unbind(1)
        return query, key, value

    def _heads(self, x: Float[Tensor, "G S I"]) -> Float[Tensor, "G heads S width"]:
        return x.unflatten(2, (self.config.heads, -1)).transpose(1, 2)
