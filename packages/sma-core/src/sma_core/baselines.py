"""What a sparse model has to beat: its own dense twin, and a Transformer of the same reach.

The Transformer is the incumbent as a careful engineer would run it: memory and time linear in the
sequence, a ring of keys and values in streaming, stock scaled-dot-product attention. Axes: B batch,
T time, D width, H heads, E width of a head, W window, Q queries of a block, G blocks, S = W + 1
slots of the ring.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from sma_core.config import AlwaysConfig, ModelConfig, TransformerConfig
from sma_core.model import SequenceModel, register_architecture
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState


def dense_twin(config: ModelConfig) -> ModelConfig:
    """Return the same model with every sub-module on at every step."""
    return replace(config, policy=AlwaysConfig())


@dataclass
class KeyValueRing(TensorState):
    """Rotated keys, and values, of the last W + 1 steps: step t lies in slot t mod S."""

    keys: Float[Tensor, "B H S E"]
    values: Float[Tensor, "B H S E"]

    def last(
        self, position: Int[Tensor, "B"], steps: int
    ) -> tuple[Float[Tensor, "B H W E"], Float[Tensor, "B H W E"]]:
        """Keys and values of the `steps` steps before `position`, oldest first."""
        slots = self.keys.shape[2]
        time = position[:, None] - steps + torch.arange(steps, device=position.device)
        index = (time % slots)[:, None, :, None].expand(
            *self.keys.shape[:2], -1, self.keys.shape[3]
        )
        return self.keys.gather(2, index), self.values.gather(2, index)

    def push(self, position: Int[Tensor, "B"], key: Tensor, value: Tensor) -> None:
        """Write step `position`; key and value are [B, H, E]."""
        row = torch.arange(position.shape[0], device=position.device)
        slot = position % self.keys.shape[2]
        self.keys[row, :, slot] = key
        self.values[row, :, slot] = value

    def extend(
        self, position: Int[Tensor, "B"], taken: Int[Tensor, "B"], key: Tensor, value: Tensor
    ) -> None:
        """Write steps `position` to ``position + taken - 1``.

        `key` and `value` [B, H, W + T, E] begin W steps before `position`, as `last` returns them.
        """
        slots = self.keys.shape[2]
        newest = (position + taken - 1)[:, None]
        time = newest - (newest - torch.arange(slots, device=position.device)) % slots
        # The one slot that may lie before the W old steps is the next to be overwritten.
        index = (time - position[:, None] + slots - 1).clamp_min(0)
        index = index[:, None, :, None].expand_as(self.keys)
        self.keys.copy_(key.detach().gather(2, index))
        self.values.copy_(value.detach().gather(2, index))


class Rotation(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): interleaved pairs, theta 10000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
        # No buffer: a cast of the model would round it.
        self._frequency = 10_000.0**-exponent

    def turns(self, position: Int[Tensor, "B T"]) -> Complex[Tensor, "B 1 T E2"]:
        """Factors of the given steps; float64 angles, as a stream's index outgrows float32."""
        if self._frequency.device != position.device:
            self._frequency = self._frequency.to(position.device)
        angle = position[:, None, :, None].double() * self._frequency
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(
    x: Float[Tensor, "B H T E"], turns: Complex[Tensor, "B 1 T E2"]
) -> Float[Tensor, "B H T E"]:
    """Turn queries or keys."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def window_mask(
    position: Int[Tensor, "B"], blocks: int, block: int, window: int
) -> Bool[Tensor, "B G 1 Q K"]:
    """Which keys the queries of each block see.

    Keys of block g are the W + Q steps from ``position + g Q - W`` on; a query sees itself and the
    W steps before it, as far as the sequence goes back.
    """
    device = position.device
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(window + block, device=device)
    near = (key >= query) & (key <= query + window)
    first = position[:, None] + torch.arange(blocks, device=device) * block - window  # [B, G]
    exists = first[:, :, None] + key >= 0
    return exists[:, :, None, None, :] & near


class WindowAttention(nn.Module):
    """Causal multi-head attention over a sliding window, in blocks of queries."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.window = config.window
        self.project_in = nn.Linear(config.width, 3 * config.width)
        self.project_out = nn.Linear(config.width, config.width)

    def _heads(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turns: Complex[Tensor, "B 1 T E2"],
        position: Int[Tensor, "B"],
        taken: Int[Tensor, "B"],
        ring: KeyValueRing | None,
    ) -> Float[Tensor, "B T D"]:
        """Attend T steps that begin at `position`; of each sequence the first `taken` are valid."""
        steps, window = x.shape[1], self.window
        block = min(window, steps)
        blocks = -(-steps // block)
        query, key, value = self._heads(x)
        query, key = rotate(query, turns), rotate(key, turns)
        if ring is None:
            past = key.new_zeros(*key.shape[:2], window, key.shape[3])
            past_keys, past_values = past, past
        else:
            past_keys, past_values = ring.last(position, window)
        key = torch.cat([past_keys, key], dim=2)
        value = torch.cat([past_values, value], dim=2)
        if ring is not None:
            ring.extend(position, taken, key, value)

        # [B, H, T, E] -> [B G, H, Q, E], keys and values with the W steps before each block.
        end = blocks * block - steps
        query = F.pad(query, (0, 0, 0, end)).unflatten(2, (blocks, block))
        spans = [
            F.pad(part, (0, 0, 0, end)).unfold(2, window + block, block).mT for part in (key, value)
        ]
        query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, *spans))
        mask = window_mask(position, blocks, block, window).flatten(0, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = out.unflatten(0, (-1, blocks)).transpose(2, 3).flatten(1, 2)  # [B, G Q, H, E]
        return self.project_out(out[:, :steps].flatten(-2))

    def step(
        self,
        x: Float[Tensor, "B 1 D"],
        turns: Complex[Tensor, "B 1 1 E2"],
        position: Int[Tensor, "B"],
        ring: KeyValueRing,
    ) -> Float[Tensor, "B 1 D"]:
        """Attend one step to the ring, in no order of time: rotation has told keys apart."""
        query, key, value = self._heads(x)
        query, key = rotate(query, turns), rotate(key, turns)
        ring.push(position, key[:, :, 0], value[:, :, 0])
        filled = torch.arange(self.window + 1, device=x.device) <= position[:, None]
        out = F.scaled_dot_product_attention(
            query, ring.keys, ring.values, attn_mask=filled[:, None, None, :]
        )
        return self.project_out(out.transpose(1, 2).flatten(-2))


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = WindowAttention(config)
        self.feed_norm = nn.LayerNorm(config.width)
        self.feed = nn.Sequential(
            nn.Linear(config.width, config.hidden_width),
            nn.GELU(),
            nn.Linear(config.hidden_width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turns: Complex[Tensor, "B 1 T E2"],
        position: Int[Tensor, "B"],
        taken: Int[Tensor, "B"],
        ring: KeyValueRing | None,
    ) -> Float[Tensor, "B T D"]:
        """Run over T steps; see `WindowAttention.forward`."""
        attended = self.attention(self.attention_norm(x), turns, position, taken, ring)
        return self.combine(x, attended)

    def combine(self, x: Float[Tensor, "B T D"], attended: Tensor) -> Float[Tensor, "B T D"]:
        """Add what attention found, then the feed-forward block."""
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed(self.feed_norm(x)))


class TransformerModel(SequenceModel):
    """A causal pre-norm Transformer whose steps see the W steps before them."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.rotation = Rotation(config.width // config.heads)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def encode(
        self,
        x: Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"] | None,
        layers: list[Any] | None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode`."""
        turns = self.rotation.turns(position)
        start = position[:, 0]
        taken = torch.full_like(start, x.shape[1]) if valid is None else valid.sum(1)
        for i, layer in enumerate(self.layers):
            x = layer(x, turns, start, taken, None if layers is None else layers[i])
        return self.norm(x), ()

    def encode_step(
        self, x: Float[Tensor, "B D"], position: Int[Tensor, "B"], layers: list[Any]
    ) -> tuple[Float[Tensor, "B D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode_step`."""
        turns = self.rotation.turns(position[:, None])
        x = x[:, None]
        for layer, ring in zip(
            cast(list[TransformerLayer], list(self.layers)), layers, strict=True
        ):
            attended = layer.attention.step(layer.attention_norm(x), turns, position, ring)
            x = layer.combine(x, attended)
        return self.norm(x)[:, 0], ()

    def init_layers(self, batch: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """See `SequenceModel.init_layers`."""
        config = self.config
        shape = (batch, config.heads, config.window + 1, config.width // config.heads)
        return [
            KeyValueRing(
                keys=torch.zeros(shape, device=device, dtype=dtype),
                values=torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(config.layers)
        ]


register_architecture(TransformerConfig, TransformerModel)
