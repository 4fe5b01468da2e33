"""Analytic gradients against finite differences, and weights that no step used."""

from dataclasses import replace

import pytest
import torch
from tests.core.models import random_inputs, small_blocks, small_config, small_model
from torch import Tensor

from sma_core import GatedAttentionConfig, NeverConfig, PeriodicConfig
from sma_core.attention import build_positions, windowed_attention
from sma_core.ema import Coefficients, ema_chunked, ema_fft
from sma_core.layer import SMALayer

pytestmark = pytest.mark.usefixtures("unchecked_signatures")


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("method", ["chunked", "state", "fft"])
def test_ema(method: str) -> None:
    x, state = leaf(2, 7, 2), leaf(2, 2, 2, seed=1)
    log_q, write, read = (leaf(2, 2, seed=seed) for seed in (2, 3, 4))
    log_q = (-log_q.abs() - 0.1).detach().requires_grad_()

    def run(x: Tensor, state: Tensor, *coefficients: Tensor) -> Tensor | tuple[Tensor, ...]:
        whole = Coefficients(*coefficients)
        if method == "fft":
            return ema_fft(x, whole)
        if method == "chunked":
            return ema_chunked(x, whole, chunk=3)[0]
        y, final = ema_chunked(x, whole, state, torch.tensor([7, 4]), chunk=3)
        assert final is not None
        return y, final

    assert torch.autograd.gradcheck(run, (x, state, log_q, write, read))


@pytest.mark.parametrize("position", ["rotary", "simple", "local"])
@pytest.mark.parametrize("score", ["softmax", "relu2"])
@pytest.mark.parametrize("causal", [True, False])
def test_windowed_attention(position: str, score: str, causal: bool) -> None:
    config = GatedAttentionConfig(
        query_width=2,
        window=2,
        max_positions=4,
        position=position,  # type: ignore[arg-type]
        score=score,  # type: ignore[arg-type]
    )
    scheme = build_positions(config, causal=causal).double()
    group = torch.tensor([0] * 6 + [1] * 3)
    time = torch.tensor([0, 1, 4, 5, 6, 9, 2, 3, 7])
    tables = list(scheme.parameters())

    def run(query: Tensor, key: Tensor, value: Tensor, *tables: Tensor) -> Tensor:
        with small_blocks():
            return windowed_attention(
                query,
                key,
                value,
                group,
                time,
                window=2,
                causal=causal,
                score=score,  # type: ignore[arg-type]
                scheme=scheme,
            )

    rows = (leaf(9, 2), leaf(9, 2, seed=1), leaf(9, 2, seed=2))
    assert torch.autograd.gradcheck(run, (*rows, *tables))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("dispatch", ["packed", "padded"])
def test_layer(bidirectional: bool, prenorm: bool, dispatch: str) -> None:
    """Of the input and of every weight, at routing that a small step does not flip."""
    config = small_config(
        pool=3,
        width=4,
        states=2,
        bidirectional=bidirectional,
        prenorm=prenorm,
        dispatch=dispatch,
    )
    layer = small_model(config).layers[0]
    assert isinstance(layer, SMALayer)
    names = [name for name, _ in layer.named_parameters()]
    position = torch.arange(6).expand(2, -1)
    valid = torch.arange(6) < torch.tensor([[6], [4]])

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        with small_blocks():
            out, decision = torch.func.functional_call(layer, named, (x, position, valid))
        assert decision.active.any(1).any(0).all()
        return out[valid]

    x = leaf(2, 6, 4)
    weights = [weight.detach().requires_grad_() for weight in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("dispatch", ["packed", "padded"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("attention", [{}, {"position": "simple"}, {"position": "local"}], ids=str)
def test_weights_that_no_row_used_have_a_gradient_of_zero(
    dispatch: str, bidirectional: bool, attention: dict[str, str]
) -> None:
    """Not None: replicas that train together would wait for each other for ever."""
    config = small_config(
        pool=3,
        policy=NeverConfig(),
        dispatch=dispatch,
        bidirectional=bidirectional,
        attention=attention,
    )
    model = small_model(config)
    model(random_inputs(config, [6, 3])).prediction.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        # The router's own rows of `project` are zero too: nothing was decided.
        assert weight.grad.any() == (".pool." not in name), name


def test_a_learned_router_that_runs_nothing_has_a_gradient_of_zero() -> None:
    config = small_config(pool=2)
    model = small_model(config)
    with torch.no_grad():
        for layer in model.layers:
            layer.project.bias[:4:2] = 1e3  # type: ignore[union-attr,index]
    outputs = model(random_inputs(config, [6, 3]))
    assert not any(decision.active.any() for decision in outputs.decisions)
    outputs.prediction.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        silent = ".pool." in name or ".policy." in name
        assert weight.grad.any() == (not silent), name


def test_every_weight_has_a_gradient_when_everything_runs() -> None:
    config = replace(small_config(pool=2), policy=PeriodicConfig(stride=1))
    model = small_model(config)
    model(random_inputs(config, [14, 9])).prediction.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
