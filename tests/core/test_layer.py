"""The layer: where dropout acts, how weights start, and what its state is."""

from collections.abc import Callable

import pytest
import torch
from tests.core.models import small_config, small_model
from tests.tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional

from sma_core import GatedAttentionConfig, ModelConfig, NeverConfig, SwiGLUConfig
from sma_core.layer import SMALayer

X = torch.randn(2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
POSITION = torch.arange(7).expand(2, -1)


def run(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, dropout: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, SMALayer, list[tuple[int, ...]]]:
    """A layer in training whose n-th dropout is replaced; its output, and what was dropped from."""
    layer = small_model(config).layers[0].train()
    assert isinstance(layer, SMALayer)
    shapes: list[tuple[int, ...]] = []

    def replaced(x: Tensor, p: float) -> Tensor:
        assert p == config.dropout
        shapes.append(tuple(x.shape))
        return dropout(len(shapes) - 1, x)

    monkeypatch.setattr(functional, "dropout", replaced)
    out, _ = layer(X, POSITION)
    return out, layer, shapes


class TestDropout:
    def test_a_causal_layer_drops_from_the_ema_and_from_the_sum(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = small_config(pool=2, dropout=0.3)
        out, _, shapes = run(config, monkeypatch, lambda n, x: 0 * x if n == 1 else x)
        assert shapes == [(2, 7, 8), (2, 7, 8)]
        assert_close(out, functional.silu(X), "float64")

    def test_a_bidirectional_layer_drops_from_the_ema_and_from_each_sub_module(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = small_config(pool=2, dropout=0.3, bidirectional=True)
        out, layer, shapes = run(config, monkeypatch, lambda n, x: 0 * x if n else x)
        decision = layer.eval()(X, POSITION)[1]
        rows = decision.active.sum((0, 1)).tolist()
        assert 0 < min(rows) < 14
        assert shapes == [(2, 7, 8), *[(n, 8) for n in rows]]
        y = functional.silu(layer.ema(layer.norm(X))[0])
        dense = layer.project(y)[..., 4:]
        assert_close(out, functional.silu(dense + X), "float64")

    def test_what_the_ema_loses_reaches_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = small_config(pool=1, dropout=0.3, policy=NeverConfig())
        out, layer, _ = run(config, monkeypatch, lambda n, x: x if n else 0 * x)
        assert_close(out, functional.silu(layer.project.bias[2:] + X), "float64")

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_none_in_evaluation(self, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        config = small_config(pool=2, dropout=0.3, bidirectional=bidirectional)
        layer = small_model(config).layers[0]
        monkeypatch.setattr(functional, "dropout", None)
        layer(X, POSITION)


def test_start_values() -> None:
    """Linear weights and gains from a normal of std 0.02 cut at two; biases and shifts at zero."""
    torch.manual_seed(0)
    config = small_config(width=64)
    pool = (GatedAttentionConfig(position="local"), SwiGLUConfig())
    layer = SMALayer(ModelConfig(inputs=config.inputs, head=config.head, width=64, pool=pool), 0)
    attention = layer.pool[0]
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            # A normal cut at two standard deviations keeps 0.88 of its own.
            assert module.weight.std().item() == pytest.approx(0.88 * 0.02, rel=0.05)
            assert module.weight.abs().max() <= 0.04
            assert not module.bias.any()
    assert attention.gain.abs().max() <= 0.04  # type: ignore[operator,union-attr]
    assert attention.gain.std().item() == pytest.approx(0.88 * 0.02, rel=0.3)  # type: ignore[operator,union-attr]
    assert not attention.shift.any()  # type: ignore[operator,union-attr]
    assert attention.positions.table.std().item() == pytest.approx(0.02, rel=0.4)  # type: ignore[operator,union-attr]
