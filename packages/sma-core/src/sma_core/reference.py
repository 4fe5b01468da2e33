"""The specification: the model's equations, one sequence, one step and one pair of rows at a time.

Slow on purpose, and without a line of the fast code: it reads the weights of a model and follows
the equations of Ren et al. (arXiv 2306.11197) and Ma et al. (arXiv 2209.10655). Fast paths are
tested against its outputs and its gradients.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sma_core.model import Inputs, SMAModel
from sma_core.reference_policies import decide
from sma_core.reference_pool import SUBMODULES, ema, linear, silu


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
            x, runs = _layer(layer, index, x, inputs.steps)
            active.append(runs)
        if model.config.prenorm:
            x = [_norm(model.config.norm, model.norm, x_t) for x_t in x]
        if model.config.head.kind == "sequence_classification":
            zero = torch.zeros(model.config.width, dtype=model.head.weight.dtype)
            predictions.append(linear(model.head, sum(x, start=zero) / max(1, steps)))
        else:
            y = torch.zeros(steps, model.config.head.outputs, dtype=model.head.weight.dtype)
            predictions.append(torch.stack([linear(model.head, x_t) for x_t in x]) if x else y)
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
        x = x + linear(model.embed.numeric, torch.stack(values + missing))
    if inputs.categorical is not None:
        for table, index in zip(model.embed.categorical, inputs.categorical[b, t], strict=True):
            x = x + table.weight[int(index)]  # type: ignore[index]
    return x


def _layer(
    layer: Any, index: int, x: list[Tensor], padded_steps: int
) -> tuple[list[Tensor], list[list[bool]]]:
    """One layer over one sequence: its output, and which sub-modules run at each step."""
    config, steps = layer.config, range(len(x))
    y = [_norm(config.norm, layer.norm, x_t) for x_t in x] if config.prenorm else x
    y = [silu(e_t) for e_t in ema(layer.ema, y)]

    pool = len(config.pool)
    us = [linear(layer.project, y_t) for y_t in y]
    h = [us_t[2 * pool :] for us_t in us]  # starts as s, the path that every step takes
    runs = [[False] * pool for _ in steps]
    for m, (member, submodule) in enumerate(zip(config.pool, layer.pool, strict=True)):
        logits = [us_t[2 * m : 2 * m + 2] for us_t in us]
        decided = decide(layer.policy, index, m, y, logits)
        times = [t for t in steps if decided[t].active]
        if config.dispatch == "capacity":
            surety = {t: decided[t].surety for t in times}
            times = _surest(surety, config.capacity_shares[m], padded_steps)
        rows = SUBMODULES[type(member)](submodule, [y[t] for t in times], times)
        for t, f_t in zip(times, rows, strict=True):
            runs[t][m] = True
            h[t] = h[t] + decided[t].confidence * f_t

    out = [silu(h[t] + x[t]) for t in steps]
    if not config.prenorm:
        out = [_norm(config.norm, layer.norm, out_t) for out_t in out]
    return out, runs


def _surest(surety: dict[int, float], share: float, padded_steps: int) -> list[int]:
    """Find the steps that get a slot: the surest of the active ones, of equals the earliest."""
    slots = max(1, math.ceil(padded_steps * Fraction(share).limit_denominator(1_000_000)))
    return sorted(sorted(surety, key=lambda t: (-surety[t], t))[:slots])


def _norm(kind: str, norm: Any, x: Float[Tensor, "D"]) -> Float[Tensor, "D"]:
    match kind:
        case "scale":
            return x / torch.sqrt((x**2).mean() + norm.eps) * norm.weight
        case "batch":
            centred, variance = x - norm.running_mean, norm.running_var
        case "layer":
            centred = x - x.mean()
            variance = (centred**2).mean()
        case _:
            raise NotImplementedError(f"no equations here for {kind} norm")
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias
