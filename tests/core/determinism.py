"""What repeats bit for bit, on any device: a training pass and a stream of each kind of model."""

from dataclasses import replace
from typing import Any

import torch
from tests.core.models import piece, random_inputs, small_config, small_model
from torch import Tensor

from sma_core import (
    ActiveEMAConfig,
    BudgetConfig,
    FullAttentionConfig,
    GumbelConfig,
    LocalConvolutionConfig,
    ModelConfig,
    TopKConfig,
)

LENGTHS = [70, 41, 1]


def _every_other(**fields: Any) -> ModelConfig:
    pool = (
        LocalConvolutionConfig(kernel_size=3),
        FullAttentionConfig(heads=2, head_width=4, max_rows=5),
        ActiveEMAConfig(states=2),
    )
    return replace(small_config(dropout=0.1, **fields), pool=pool)


DETERMINISTIC = {
    "packed": small_config(pool=3, dropout=0.1),
    "padded": small_config(pool=3, dropout=0.1, dispatch="padded"),
    "capacity": small_config(pool=3, dropout=0.1, dispatch="capacity", capacity=0.5),
    "positions of a table": small_config(pool=3, attention={"position": "simple"}),
    "every other sub-module, padded": _every_other(dispatch="padded"),
    "every other sub-module, budget": _every_other(policy=BudgetConfig(rate=0.5)),
    "bidirectional, Gumbel": _every_other(bidirectional=True, policy=GumbelConfig()),
    "fft, batch norm, top-k": small_config(
        pool=2, ema="fft", norm="batch", policy=TopKConfig(rate=0.4)
    ),
}


def assert_repeats(config: ModelConfig, device: str) -> None:
    """Run twice and compare every bit of what comes out."""
    first, second = _run(config, device), _run(config, device)
    for name, tensor in first.items():
        assert tensor.isfinite().all(), name
        assert tensor.equal(second[name]), name


def _run(config: ModelConfig, device: str) -> dict[str, Tensor]:
    """Outputs, gradients and the last state, by name."""
    model = small_model(config, dtype=torch.float32).to(device)
    inputs = random_inputs(config, LENGTHS, dtype=torch.float32).to(device)
    torch.manual_seed(0)
    prediction = model.train()(inputs).prediction
    assert inputs.valid is not None
    found = {"prediction": prediction[inputs.valid]}
    found["prediction"].square().sum().backward()
    found |= {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    if config.causal:
        model.eval()
        state = model.init_state(len(LENGTHS), device=device)
        model(piece(inputs, 0, 20), state)
        for t in range(20, 24):
            model.step(replace(piece(inputs, t, t + 1), lengths=None), state)
        found |= state.named_tensors()
    return found
