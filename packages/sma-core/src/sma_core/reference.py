"""The specification: the model's equations, one sequence, one step and one pair of rows at a time.

Slow on purpose, and without a line of the fast code: it reads the weights of a model and follows
the equations of Ren et al. (arXiv 2306.11197) and Ma et al. (arXiv 2209.10655). Fast paths are
tested against its outputs and its gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sma_core.config import (
    AlwaysConfig,
    GatedAttentionConfig,
    NeverConfig,
    PeriodicConfig,
    RandomConfig,
    SwiGLUConfig,
    TemperedSoftmaxConfig,
)
from sma_core.model import Inputs, SMAModel


@dataclass(frozen=True)
class ReferenceOutputs:
    """Predictions and decisions of each sequence by itself, without padding.

    Parameters
    ----------
    prediction
        One tensor per sequence, [T, O], or [O] for sequence classification.
    active
        Per sequence, the decisions of all layers.
    """

    prediction: list[Tensor]
    active: list[Bool[Tensor, "L _ M"]]  # T of each sequence


def reference_forward(model: SMAModel, inputs: Inputs) -> ReferenceOutputs:
    """Run a model in evaluation, without dropout, by the equations."""
    predictions, decisions = [], []
    for b in range(inputs.batch):
        steps = inputs.steps if inputs.lengths is None else int(inputs.lengths[b])
        x = [_embed(model, inputs, b, t) for t in range(steps)]
        active = []
        for index, layer in enumerate(model.layers):
            x, runs = _layer(layer, index, x)
            active.append(runs)
        if model.config.prenorm:
            x = [_norm(model.norm, x_t) for x_t in x]
        if model.config.head.kind == "sequence_classification":
            zero = torch.zeros(model.config.width, dtype=model.head.weight.dtype)
            predictions.append(_linear(model.head, sum(x, start=zero) / max(1, steps)))
        else:
            y = torch.zeros(steps, model.config.head.outputs, dtype=model.head.weight.dtype)
            predictions.append(torch.stack([_linear(model.head, x_t) for x_t in x]) if x else y)
        shape = (len(model.layers), steps, len(model.config.pool))
        decisions.append(torch.tensor(active, dtype=torch.bool).view(shape))
    return ReferenceOutputs(predictions, decisions)


def _embed(model: SMAModel, inputs: Inputs, b: int, t: int) -> Float[Tensor, "D"]:
    x = torch.zeros(model.config.width, dtype=model.head.weight.dtype)
    if inputs.numeric is not None:
        values, missing = [], []
        for value in inputs.numeric[b, t]:
            absent = not abs(value.item()) <= 1e15
            values.append(torch.zeros_like(value) if absent else value)
            missing.append(torch.full_like(value, float(absent)))
        x = x + _linear(model.embed.numeric, torch.stack(values + missing))
    if inputs.categorical is not None:
        for table, index in zip(model.embed.categorical, inputs.categorical[b, t], strict=True):
            x = x + table.weight[int(index)]  # type: ignore[index]
    return x


def _layer(layer: Any, index: int, x: list[Tensor]) -> tuple[list[Tensor], list[list[bool]]]:
    """One layer over one sequence: its output, and which sub-modules run at each step."""
    config, steps = layer.config, range(len(x))
    y = [_norm(layer.norm, x_t) for x_t in x] if config.prenorm else x
    y = [_silu(e_t) for e_t in _ema(layer.ema, y)]

    pool = len(config.pool)
    us = [_linear(layer.project, y_t) for y_t in y]
    h = [us_t[2 * pool :] for us_t in us]  # starts as s, the path that every step takes
    runs = [[False] * pool for _ in steps]
    for m, (member, submodule) in enumerate(zip(config.pool, layer.pool, strict=True)):
        confidence = {}
        for t in steps:
            decided = _decide(layer.policy, index, m, t, us[t][2 * m : 2 * m + 2])
            runs[t][m], c_t = decided
            if runs[t][m]:
                confidence[t] = c_t
        times = sorted(confidence)
        rows = _SUBMODULES[type(member)](submodule, [y[t] for t in times], times)
        for t, f_t in zip(times, rows, strict=True):
            h[t] = h[t] + confidence[t] * f_t

    out = [_silu(h[t] + x[t]) for t in steps]
    return out if config.prenorm else [_norm(layer.norm, out_t) for out_t in out], runs


def _ema(ema: Any, x: list[Tensor]) -> list[Tensor]:
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


def _decide(policy: Any, layer: int, m: int, t: int, logits: Tensor) -> tuple[bool, Tensor]:
    """Whether sub-module m runs at step t, and the confidence of that."""
    config = policy.config
    one = torch.ones((), dtype=logits.dtype)
    match config:
        case TemperedSoftmaxConfig():
            p = torch.softmax(logits / torch.exp(policy.theta[m]), dim=0)
            return bool(logits[1] > logits[0]), p.max()
        case AlwaysConfig():
            return True, one
        case NeverConfig():
            return False, one
        case PeriodicConfig():
            return t % config.stride == 0, one
        case RandomConfig():
            stream = layer * policy.pool + m + config.seed * _GOLDEN
            bits = _splitmix(_splitmix(stream) + t) % 2**53
            return bits < round(config.rate * 2**53), one
    raise NotImplementedError(f"no equations here for {type(config).__name__}")


_GOLDEN = 0x9E3779B97F4A7C15


def _splitmix(x: int) -> int:
    x = (x + _GOLDEN) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _gated_attention(unit: Any, y: list[Tensor], times: list[int]) -> list[Tensor]:
    config = unit.config
    z, h, window = config.query_width, config.value_width, config.window
    queries, keys, gates, values = [], [], [], []
    for y_t, t in zip(y, times, strict=True):
        base, gate, value = _silu(_linear(unit.project, y_t)).split((z, h, h))
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
        out.append(_linear(unit.output, mixed * gates[i]))
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
        gate, value = _linear(unit.project, y_t).split(unit.config.hidden_width)
        out.append(_linear(unit.output, _silu(gate) * value))
    return out


def _linear(linear: Any, x: Float[Tensor, "I"]) -> Float[Tensor, "O"]:
    return (linear.weight * x).sum(1) + linear.bias


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _norm(norm: Any, x: Float[Tensor, "D"]) -> Float[Tensor, "D"]:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


_SUBMODULES: dict[type, Callable[[Any, list[Tensor], list[int]], list[Tensor]]] = {
    GatedAttentionConfig: _gated_attention,
    SwiGLUConfig: _swiglu,
}
