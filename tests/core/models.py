"""Small models and inputs for the tests of the core, with weights that make every path matter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from tests.core.shapes import unchecked_shapes
from torch import Tensor

from sma_core import (
    GatedAttentionConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    ModelConfig,
    SMAModel,
    SwiGLUConfig,
    build_model,
)

POOL = (
    GatedAttentionConfig(query_width=4, value_width=6, window=3, max_positions=5),
    SwiGLUConfig(hidden_width=5),
    GatedAttentionConfig(query_width=6, value_width=4, window=2, score="relu2", position="local"),
)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Cut time and rows into pieces so short that small inputs have many of them."""
    with patch("sma_core.ema.CHUNK", 4), patch("sma_core.attention.blocks.BLOCK", 4):
        yield


def small_config(
    *, pool: int = 1, attention: dict[str, Any] | None = None, **fields: Any
) -> ModelConfig:
    """A config of width 8; `attention` changes the first member of the pool."""
    members = (replace(POOL[0], **(attention or {})), *POOL[1:])[:pool]
    defaults: dict[str, Any] = {
        "inputs": InputConfig(numeric=2, categorical=(3,)),
        "head": HeadConfig(kind="step_classification", outputs=3),
        "width": 8,
        "layers": 2,
        "states": 3,
    }
    return ModelConfig(pool=members, **(defaults | fields))


def small_model(config: ModelConfig, *, seed: int = 0, dtype=torch.float64) -> SMAModel:
    """A model in evaluation whose weights are large: at their start values attention is faint.

    Its routers are balanced, as one that never runs a sub-module would leave it untested.
    """
    model = build_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("gain", "theta")):
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 2 and "ema" not in name:
                weight.copy_(noise / weight.shape[1] ** 0.5)
            else:
                weight.copy_(0.5 * noise)
    assert isinstance(model, SMAModel)
    model.double().eval()
    with unchecked_shapes():
        _balance_routers(model)
    return model.to(dtype)


@torch.no_grad()
def _balance_routers(model: SMAModel) -> None:
    """Shift router biases, layer by layer, so that each sub-module runs at half of some steps."""
    inputs = random_inputs(model.config, [14, 9, 1])
    assert inputs.valid is not None
    for i, layer in enumerate(model.layers):
        margin = model(inputs).decisions[i].margin
        if margin is not None:
            middle = _middle(margin[inputs.valid])
            layer.project.bias[1 : 2 * len(model.config.pool) : 2] -= middle  # type: ignore
        predictor = getattr(layer.policy, "predictor", None)
        if predictor is not None:  # it decides in place of the router
            seen: list[Tensor] = []
            hook = predictor.register_forward_hook(lambda m, x, out, seen=seen: seen.append(out))
            model(inputs)
            hook.remove()
            predictor.bias -= _middle(seen[0][inputs.valid])


def _middle(margin: Tensor) -> Tensor:
    """Between two steps and not at one, so that rounding flips no decision."""
    ordered = margin.sort(0).values
    half = len(ordered) // 2
    return (ordered[half - 1] + ordered[half]) / 2


def random_inputs(
    config: ModelConfig, lengths: list[int], *, seed: int = 0, dtype=torch.float64
) -> Inputs:
    """Right-padded sequences with a few missing values."""
    generator = torch.Generator().manual_seed(seed)
    batch, steps = len(lengths), max(1, *lengths)
    numeric = None
    if channels := config.inputs.numeric:
        numeric = torch.randn(batch, steps, channels, generator=generator, dtype=torch.float64)
        gaps = torch.rand(numeric.shape, generator=generator) < 0.1
        numeric = numeric.masked_fill(gaps, float("nan")).to(dtype)
    categorical = None
    if sizes := config.inputs.categorical:
        columns = [torch.randint(n, (batch, steps), generator=generator) for n in sizes]
        categorical = torch.stack(columns, dim=-1)
    return Inputs(numeric, categorical, torch.tensor(lengths))


def piece(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Steps start..stop of a batch, with the lengths that remain."""
    lengths = inputs.lengths

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, start:stop]

    inside = None if lengths is None else (lengths - start).clamp(0, stop - start)
    return Inputs(cut(inputs.numeric), cut(inputs.categorical), inside)
