"""The specification of the pool: each sub-module's equations on the active rows of one sequence.

A part of `sma_core.reference`, and like it without a line of the fast code.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.config import GatedAttentionConfig, SwiGLUConfig
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)


def _gated_attention(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    config = unit.config
    z, h, window = config.query_width, config.value_width, config.window
    queries, keys, gates, values = [], [], [], []
    for y_t, t in zip(y, times, strict=True):
        base, gate, value = silu(linear(unit.project, y_t)).split((z, h, h))
        query, key = (base * unit.gain[i] + unit.shift[i] for i in range(2))
        if config.position == "rotary":
            query, key = _rotate(query, t), _rotate(key, t)
        queries.append(query)
        keys.append(key)
        gates.append(gate)
        values.append(value)

    out = []
    for i in range(len(y)):
        seen = [
            j
            for j in range(len(y))
            if (0 <= i - j <= window if unit.causal else abs(i - j) <= window)
        ]
        scores = []
        for j in seen:
            dot = (queries[i] * keys[j]).sum()
            if config.score == "softmax":
                scores.append(dot / math.sqrt(z))
            else:
                scores.append(dot / (window if unit.causal else 2 * window))
            if config.position != "rotary":
                apart = times[i] - times[j] if config.position == "simple" else i - j
                scores[-1] = scores[-1] + _bias(unit.positions.table, apart, unit.causal)
        stacked = torch.stack(scores)
        if config.score == "softmax":
            weights = torch.exp(stacked - stacked.max())
            weights = weights / weights.sum()
        else:
            weights = stacked.clamp_min(0) ** 2
        mixed = torch.zeros(h, dtype=stacked.dtype)
        for w, j in zip(weights, seen, strict=True):
            mixed = mixed + w * values[j]
        out.append(linear(unit.output, mixed * gates[i]))
    return out


def _bias(table: Tensor, apart: int, causal: bool) -> Tensor:
    """Entry of a table that starts at distance 0, or has it in the middle."""
    zero = 0 if causal else len(table) // 2
    return table[min(max(zero + apart, 0), len(table) - 1)]


def _rotate(x: Float[Tensor, "Z"], t: int) -> Float[Tensor, "Z"]:
    out = []
    for i in range(0, len(x), 2):
        angle = t * 10_000 ** (-i / len(x))
        cos, sin = math.cos(angle), math.sin(angle)
        out += [x[i] * cos - x[i + 1] * sin, x[i] * sin + x[i + 1] * cos]
    return torch.stack(out)


def _swiglu(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    out = []
    for y_t in y:
        gate, value = linear(unit.project, y_t).split(unit.config.hidden_width)
        out.append(linear(unit.output, silu(gate) * value))
    return out


def _local_convolution(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    reach = unit.config.kernel_size - 1
    out = []
    for i in range(len(y)):
        total = unit.bias
        for j in range(len(y)):
            apart = i - j
            if (0 if unit.causal else -reach) <= apart <= reach:
                total = total + unit.taps[apart if unit.causal else apart + reach] * y[j]
        out.append(linear(unit.output, silu(total)))
    return out


def _full_attention(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    heads, width, most = unit.config.heads, unit.config.head_width, unit.config.max_rows
    inner = heads * width
    projected = [linear(unit.project, y_t).split((inner, inner, inner)) for y_t in y]
    out = []
    for i in range(len(y)):
        seen = [
            j for j in range(len(y)) if (0 <= i - j < most if unit.causal else abs(i - j) < most)
        ]
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            query = _rotate(projected[i][0][part], times[i])
            scores = torch.stack(
                [
                    (query * _rotate(projected[j][1][part], times[j])).sum() / math.sqrt(width)
                    for j in seen
                ]
            )
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            mixed.append(sum(w * projected[j][2][part] for w, j in zip(weights, seen, strict=True)))
        out.append(linear(unit.output, torch.cat(mixed)))
    return out


def _active_ema(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    return [linear(unit.output, silu(e_t)) for e_t in ema(unit.ema, y)]


def ema(ema: Any, x: list[Tensor]) -> list[Tensor]:
    """Multi-head EMA over one or both directions of a sequence."""
    width, states = len(ema.omega), ema.delta.shape[1]
    p = 1 / (1 + torch.exp(-ema.delta))
    q = 1 - p / (1 + torch.exp(-ema.alpha))

    def run(half: slice, order: list[int]) -> dict[int, Tensor]:
        h = torch.zeros(width, states, dtype=ema.omega.dtype)
        out = {}
        for t in order:
            h = q[half] * h + p[half] * ema.beta[half] * x[t][:, None]
            out[t] = (ema.gamma[half] * math.sqrt(1 / states) * h).sum(1)
        return out

    order = list(range(len(x)))
    y = run(slice(0, width), order)
    if ema.bidirectional:
        back = run(slice(width, 2 * width), order[::-1])
        y = {t: y[t] + back[t] for t in order}
    return [y[t] + ema.omega * x[t] for t in order]


def linear(linear: Any, x: Float[Tensor, "I"]) -> Float[Tensor, "O"]:
    """Affine map."""
    return (linear.weight * x).sum(1) + linear.bias


def silu(x: Tensor) -> Tensor:
    """``x sigmoid(x)``."""
    return x / (1 + torch.exp(-x))


SUBMODULES: dict[type, Callable[[Any, list[Tensor], list[int]], list[Tensor]]] = {
    GatedAttentionConfig: _gated_attention,
    SwiGLUConfig: _swiglu,
    LocalConvolutionConfig: _local_convolution,
    FullAttentionConfig: _full_attention,
    ActiveEMAConfig: _active_ema,
}
