"""`SMABlock` in a model of another make: everything that is done to a Transformer block."""

import copy
import pickle
from typing import Any

import pytest
import torch
from tests.core.models import POOL
from tests.tolerances import assert_close
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sma_core import (
    ActiveEMAConfig,
    AlwaysConfig,
    ConfigError,
    FullAttentionConfig,
    LocalConvolutionConfig,
    NeverConfig,
    ShapeError,
    SMABlock,
)

WIDTH = 8
EVERY_KIND = (
    *POOL,
    LocalConvolutionConfig(kernel_size=3),
    FullAttentionConfig(heads=2, head_width=4, max_rows=4),
    ActiveEMAConfig(states=2),
)
LAYOUTS = pytest.mark.parametrize(
    "layout", [{}, {"dispatch": "padded"}, {"dispatch": "capacity", "capacity": 0.5}], ids=str
)


class Host(nn.Module):
    """A model of another make: its blocks map a stream to a stream."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, WIDTH)
        self.blocks = nn.ModuleList(SMABlock(WIDTH, index=i, **fields) for i in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor, recompute: bool = False) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.head(x)


def host(dtype: torch.dtype = torch.float64, **fields: Any) -> Host:
    """Weights large enough that some steps run and others do not."""
    torch.manual_seed(0)
    model = Host(**({"pool": EVERY_KIND, "states": 3} | fields))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "ema" not in name:
                weight.copy_(torch.randn(weight.shape) / weight.shape[1] ** 0.5)
    return model.to(dtype)


TOKENS = torch.randint(5, (2, 11), generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor]:
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], row: str) -> None:
    assert got.keys() == expected.keys()
    ours, theirs = (
        torch.cat([each[name].flatten() for name in expected]) for each in (got, expected)
    )
    assert_close(ours, theirs, row)


@LAYOUTS
def test_it_trains_and_keeps_its_decision(layout: dict[str, Any]) -> None:
    model = host(**layout)
    out = model(TOKENS)
    assert out.shape == (2, 11, 5)
    decisions = [block.decision for block in model.blocks]
    assert all(d.active.shape == (2, 11, len(EVERY_KIND)) for d in decisions)  # type: ignore[union-attr]
    assert all(d.active.any() and not d.active.all() for d in decisions)  # type: ignore[union-attr]
    # A regulariser on the decision reaches the router.
    router = model.blocks[0].layer.project.weight  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(
        decisions[0].probability.mean(),  # type: ignore[union-attr]
        router,  # type: ignore[arg-type]
        retain_graph=True,
    )
    assert gradient.any()
    assert any(g.any() for g in gradients(model, out).values())


def test_it_equals_the_layer_it_holds() -> None:
    block, x = host().blocks[0], torch.randn(2, 7, WIDTH, dtype=torch.float64)
    assert isinstance(block, SMABlock)
    position = torch.arange(7).expand(2, -1)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    assert block(x).equal(block.layer(x, position)[0])
    assert block(x, valid, position + 3).equal(block.layer(x, position + 3, valid)[0])


@LAYOUTS
def test_activation_checkpointing(layout: dict[str, Any]) -> None:
    model = host(**layout)
    plain, again = model(TOKENS), model(TOKENS, recompute=True)
    assert again.equal(plain)
    assert_same(gradients(model, again), gradients(model, plain), "float64")


@LAYOUTS
def test_copies(layout: dict[str, Any]) -> None:
    model = host(**layout)
    expected = model(TOKENS)
    twin = copy.deepcopy(model)  # with a decision that has a gradient
    assert twin.blocks[0].decision is None
    assert model.blocks[0].decision is not None
    assert twin(TOKENS).equal(expected)
    assert pickle.loads(pickle.dumps(model))(TOKENS).equal(expected)  # noqa: S301  (our own)
    other = Host(pool=EVERY_KIND, states=3, **layout).double()
    other.load_state_dict(model.state_dict())
    assert other(TOKENS).equal(expected)


@LAYOUTS
def test_functional_call_and_grad(layout: dict[str, Any]) -> None:
    model = host(**layout)
    expected = gradients(model, model(TOKENS))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (TOKENS,)).square().sum()

    assert_same(torch.func.grad(loss)(weights), expected, "float64")


@LAYOUTS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_in_float64(layout: dict[str, Any], bidirectional: bool) -> None:
    block = host(**layout, bidirectional=bidirectional).blocks[0]
    weights = dict(block.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(block, named, (x,))

    x = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *weights.values()), fast_mode=True)


@LAYOUTS
def test_autocast(layout: dict[str, Any]) -> None:
    """Rounding moves decisions, so they are fixed here: every step runs."""
    fields = layout | ({"capacity": 1.0} if layout.get("capacity") else {})
    model = host(torch.float32, policy=AlwaysConfig(), **fields)
    expected = model(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(TOKENS)
    assert_close(out, expected, "bfloat16")
    assert all(g.isfinite().all() for g in gradients(model, out.float()).values())


@LAYOUTS
def test_no_active_row_leaves_every_weight_in_the_graph(layout: dict[str, Any]) -> None:
    model = host(policy=NeverConfig(), **layout)
    for name, gradient in gradients(model, model(TOKENS)).items():
        assert gradient.isfinite().all()
        assert gradient.any() == (".pool." not in name), name


@LAYOUTS
def test_inference_mode(layout: dict[str, Any]) -> None:
    model = host(**layout)
    with torch.inference_mode():
        out = model(TOKENS)
    assert out.equal(model(TOKENS))


@pytest.mark.parametrize(
    ("x", "rest", "words"),
    [
        (torch.zeros(7, WIDTH), (), r"^x: must be \[batch, time, 8\] and floating point, not \[7"),
        (torch.zeros(2, 7, 9), (), r"^x: .* not \[2, 7, 9\]"),
        (torch.zeros(2, 7, WIDTH, dtype=torch.int64), (), r"^x: .* torch.int64"),
        (torch.zeros(2, 7, WIDTH), (torch.ones(2, 6).bool(),), r"^valid: must be \[2, 7\]"),
        (torch.zeros(2, 7, WIDTH), (torch.ones(2, 7),), r"^valid: .* not \[2, 7\] torch.float32"),
        (torch.zeros(2, 7, WIDTH), (None, torch.zeros(2, 7)), r"^position: .* torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(x: Tensor, rest: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        SMABlock(WIDTH)(x, *rest)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"states": 0}, r"^states: must be an integer of at least 1"),
        ({"capacity": 0.0}, r"^capacity: must be a number in \(0, 1\], not 0.0"),
        ({"capacity": (0.5, 2)}, r"^capacity\[1\]: must be a number in \(0, 1\], not 2"),
        ({"capacity": (0.5, 0.5)}, r"^capacity: needs one share or 1, one a sub-module, got 2"),
        ({"dispatch": "fixed"}, r"^dispatch: must be one of packed, padded, capacity"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SMABlock(WIDTH, **fields)
