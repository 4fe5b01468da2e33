"""The incumbents: causal, windowed, and the same numbers in one pass, in chunks and in steps."""

import pytest
import torch
from tests.tolerances import assert_close
from torch import Tensor

from sma_core.baselines import TransformerModel, dense_twin
from sma_core.config import (
    AlwaysConfig,
    HeadConfig,
    HeadKind,
    InputConfig,
    ModelConfig,
    TransformerConfig,
    config_from_dict,
    config_to_dict,
)
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, build_model


def transformer(kind: HeadKind = "forecast", window: int = 5, layers: int = 2) -> SequenceModel:
    torch.manual_seed(0)
    config = TransformerConfig(
        inputs=InputConfig(numeric=3, categorical=(4,)),
        head=HeadConfig(kind=kind, outputs=3),
        width=16,
        layers=layers,
        heads=2,
        hidden_width=24,
        window=window,
    )
    return build_model(config).eval()


def make_inputs(batch: int, steps: int, lengths: list[int] | None = None, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    numeric = torch.randn(batch, steps, 3, generator=generator)
    numeric[torch.rand(batch, steps, 3, generator=generator) < 0.1] = torch.nan
    categorical = torch.randint(0, 4, (batch, steps, 1), generator=generator)
    return Inputs(numeric, categorical, None if lengths is None else torch.tensor(lengths))


def cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    def piece(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, start:stop]

    return Inputs(piece(inputs.numeric), piece(inputs.categorical))


def naive_attention(model: TransformerModel, inputs: Inputs) -> Tensor:
    """The model again from its weights: one T x T mask, rotation by explicit sines and cosines."""
    config = model.config
    x = model.embed(inputs)
    steps, half = inputs.steps, config.width // config.heads // 2
    angle = torch.arange(steps)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()

    def turned(vectors: Tensor) -> Tensor:
        even, odd = vectors[..., 0::2], vectors[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    distance = torch.arange(steps)[:, None] - torch.arange(steps)
    hidden = (distance < 0) | (distance > config.window)
    for layer in model.layers:
        assert isinstance(layer, torch.nn.Module)
        normed = layer.attention_norm(x)  # type: ignore[operator]
        qkv = layer.attention.project_in(normed)  # type: ignore[union-attr,operator]
        query, key, value = qkv.unflatten(-1, (3, config.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = turned(query) @ turned(key).mT / (2 * half) ** 0.5
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value
        joined = mixed.transpose(1, 2).flatten(-2)
        x = x + layer.attention.project_out(joined)  # type: ignore[union-attr,operator]
        x = x + layer.feed(layer.feed_norm(x))  # type: ignore[operator]
    return model.head(model.norm(x))


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 11, 23])
def test_blocked_attention_is_full_attention_with_a_band(steps: int) -> None:
    model = transformer()
    assert isinstance(model, TransformerModel)
    inputs = make_inputs(2, steps)
    assert_close(model(inputs).prediction, naive_attention(model, inputs), "float32")


@pytest.mark.parametrize("kind", ["forecast", "sequence_classification"])
@pytest.mark.parametrize("cuts", [(23,), (1, 22), (6, 6, 11), (2, 3, 5, 7, 6)])
@torch.no_grad()
def test_chunks_equal_one_pass(kind: HeadKind, cuts: tuple[int, ...]) -> None:
    model, inputs = transformer(kind), make_inputs(2, 23)
    whole = model(inputs).prediction
    state = model.init_state(2)
    start, pieces = 0, []
    for length in cuts:
        pieces.append(model(cut(inputs, start, start + length), state).prediction)
        start += length
    assert state.position.tolist() == [23, 23]
    joined = pieces[-1] if kind == "sequence_classification" else torch.cat(pieces, dim=1)
    assert_close(joined, whole, "float32")


@pytest.mark.parametrize("kind", ["forecast", "sequence_classification"])
@pytest.mark.parametrize("first", [0, 7])
@torch.no_grad()
def test_steps_equal_one_pass(kind: HeadKind, first: int) -> None:
    """From the start, and after a chunk: both ways to fill the ring meet."""
    model, inputs = transformer(kind), make_inputs(3, 20)
    whole = model(inputs).prediction
    state = model.init_state(3)
    if first:
        model(cut(inputs, 0, first), state)
    outputs = [model.step(cut(inputs, t, t + 1), state).prediction for t in range(first, 20)]
    if kind == "sequence_classification":
        assert_close(outputs[-1], whole, "float32")
    else:
        assert_close(torch.cat(outputs, dim=1), whole[:, first:], "float32")


@torch.no_grad()
def test_rows_of_a_batch_may_advance_by_different_lengths() -> None:
    model = transformer()
    lengths = [[4, 0, 9], [9, 9, 1], [1, 8, 9]]
    whole = make_inputs(3, 30)
    expected = model(whole).prediction
    state = model.init_state(3)
    assert whole.numeric is not None
    assert whole.categorical is not None
    for taken in lengths:
        start = state.position.tolist()
        at = [torch.arange(s, s + 9) for s in start]
        chunk = Inputs(
            torch.stack([whole.numeric[b, at[b]] for b in range(3)]),
            torch.stack([whole.categorical[b, at[b]] for b in range(3)]),
            torch.tensor(taken),
        )
        prediction = model(chunk, state).prediction
        for b, (s, n) in enumerate(zip(start, taken, strict=True)):
            if n:
                assert_close(prediction[b, :n], expected[b, s : s + n], "float32")
    assert state.position.tolist() == [14, 17, 19]


def test_a_step_sees_the_window_before_it_and_nothing_else() -> None:
    """Of the input's gradient, exactly the W + 1 last steps of one layer are not zero."""
    model = transformer(window=5, layers=1)
    numeric = torch.randn(1, 17, 3, requires_grad=True)
    inputs = Inputs(numeric, torch.zeros(1, 17, 1, dtype=torch.int64))
    model(inputs).prediction[0, 11].sum().backward()
    assert numeric.grad is not None
    seen = numeric.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(6, 12))


@torch.no_grad()
def test_padding_does_not_reach_valid_steps() -> None:
    model = transformer()
    inputs = make_inputs(2, 12, lengths=[12, 7])
    assert inputs.numeric is not None
    changed = inputs.numeric.clone()
    changed[1, 7:] = 1e6
    other = Inputs(changed, inputs.categorical, inputs.lengths)
    assert_close(model(other).prediction[1, :7], model(inputs).prediction[1, :7], "float32")
    alone = cut(inputs, 0, 7)
    assert_close(model(alone).prediction[1], model(inputs).prediction[1, :7], "float32")


@torch.no_grad()
def test_a_long_stream_keeps_its_precision() -> None:
    """Attention depends on distances alone, so the step count may not matter, however large."""
    model, inputs = transformer(), make_inputs(1, 12)
    fresh, old = model.init_state(1), model.init_state(1)
    old.position.add_(600_000_001)
    # Both begin with an empty window: the old one's ring holds zeros as keys, so only steps whose
    # whole window lies in the inputs are compared.
    outputs = [
        torch.cat([model.step(cut(inputs, t, t + 1), s).prediction for t in range(12)], dim=1)
        for s in (fresh, old)
    ]
    assert_close(outputs[1][:, 11:], outputs[0][:, 11:], "float32")


def test_the_dense_twin_differs_in_its_policy_alone() -> None:
    config = ModelConfig(
        inputs=InputConfig(numeric=2), head=HeadConfig(kind="forecast", outputs=2), width=8
    )
    twin = dense_twin(config)
    assert twin.policy == AlwaysConfig()
    before, after = config_to_dict(config), config_to_dict(twin)
    assert {key for key in before if before[key] != after[key]} == {"policy"}
    assert config_from_dict(after) == twin


def test_the_registry_builds_a_transformer_from_its_plain_form() -> None:
    config = transformer().config
    assert isinstance(build_model(config_from_dict(config_to_dict(config))), TransformerModel)
