"""Gated attention unit (Hua et al., arXiv 2202.10447) over the last active rows."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.attention import (
    AttentionCache,
    build_positions,
    can_flash,
    flash_attention,
    weigh,
    windowed_attention,
)
from sma_core.config import GatedAttentionConfig
from sma_core.dispatch import Rows
from sma_core.submodules.ring import RingSubModule
from sma_core.submodules.submodule import init_linear


class GatedAttention(RingSubModule):
    """One shared projection gives queries, keys, values and a gate; one head, one window.

    As in the Mega layer, queries and keys are two learned scalings of one low-width vector.
    """

    config: GatedAttentionConfig

    def __init__(self, config: GatedAttentionConfig, *, width: int, causal: bool) -> None:
        super().__init__(config, width=width, causal=causal)
        z, h = config.query_width, config.value_width
        self.project = nn.Linear(width, z + 2 * h)
        self.gain = nn.Parameter(torch.empty(2, z))  # of queries, of keys
        self.shift = nn.Parameter(torch.empty(2, z))
        self.positions = build_positions(config, causal=causal)
        self.output = nn.Linear(h, width)
        visible = config.window if causal else 2 * config.window
        self._scale = 1 / math.sqrt(z) if config.score == "softmax" else 1 / visible
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw truncated normal weights and gains; biases and shifts start at zero."""
        init_linear(self.project)
        init_linear(self.output)
        nn.init.trunc_normal_(self.gain, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.shift)

    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: AttentionCache | None = None
    ) -> Float[Tensor, "R D"]:
        """See `SubModule.forward`."""
        query, key, value, gate = self._project(x, rows.position)
        group, position, new = rows.group, rows.position, None
        if state is not None:
            joined = state.join(rows, key, value)
            state.extend(rows, key, value)
            group, position, new = joined.group, joined.position, joined.new
            key, value = joined.key, joined.value
            query = torch.zeros_like(key).index_copy(0, new, query)
        if state is None and self._suits_flash(value, rows):
            seen = flash_attention(
                query, key, value, rows, window=self.config.window, causal=self.causal
            )
        else:
            seen = windowed_attention(
                query,
                key,
                value,
                group,
                position,
                window=self.config.window,
                causal=self.causal,
                score=self.config.score,
                scheme=self.positions,
            )
        if new is not None:
            seen = seen.index_select(0, new)
        return self.output(seen * gate)

    def _suits_flash(self, value: Float[Tensor, "R H"], rows: Rows) -> bool:
        """Whether the fused kernel computes this: softmax without a bias, in half precision."""
        config = self.config
        return (
            config.score == "softmax"
            and config.position == "rotary"
            and (rows.padding is None or self.causal)  # padding lies behind, which causal hides
            and can_flash(value, rows, config.query_width)
        )

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> AttentionCache:
        """See `SubModule.init_state`."""
        config = self.config
        return AttentionCache.fresh(
            batch,
            config.window + 1,
            config.query_width,
            config.value_width,
            device=device,
            dtype=dtype,
        )

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: AttentionCache | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """See `SubModule.step`."""
        assert state is not None  # noqa: S101  (made by init_state)
        query, key, value, gate = self._project(x, position)
        ring = state.push(key, value, position, index)
        bias = self.positions.bias(
            ring.age if self.positions.uses_rows else None,
            position[:, None] - ring.position if self.positions.uses_time else None,
        )
        scores = torch.bmm(ring.key, query.to(ring.key.dtype).unsqueeze(-1)).squeeze(-1)
        weights = weigh(scores, bias, ring.empty, self.config.score)
        seen = torch.bmm(weights.to(ring.value.dtype).unsqueeze(1), ring.value).squeeze(1)
        return self.output(seen.to(gate.dtype) * gate)

    def _project(
        self, x: Float[Tensor, "R D"], position: Int[Tensor, "R"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled query, key, value and gate of each row."""
        z, h = self.config.query_width, self.config.value_width
        base, gate, value = functional.silu(self.project(x)).split((z, h, h), dim=-1)
        both = torch.addcmul(self.shift, base.unsqueeze(1), self.gain)
        query, key = self.positions.rotate(both, position).unbind(1)
        return query * self._scale, key, value, gate
