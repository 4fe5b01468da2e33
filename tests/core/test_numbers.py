"""Extreme inputs, extreme routing, extreme lengths and narrow types give numbers, never NaN."""

from dataclasses import replace

import pytest
import torch
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.tolerances import assert_close

from sma_core import (
    AlwaysConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    ModelConfig,
    NeverConfig,
    PolicyConfig,
    RandomConfig,
    SequenceModel,
    TransformerConfig,
    build_model,
)

NAN, INF = float("nan"), float("inf")
EXTREMES = [NAN, INF, -INF, 1e30, -1e30, 3.4e38, 1e15, -1e15, 1e-45, 0.0]
SCORES = pytest.mark.parametrize("score", ["softmax", "relu2"])
# A learned router may flip at a rounding, and predictions with it.
SOMETIMES = RandomConfig(rate=0.6, seed=1)
NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def transformer() -> SequenceModel:
    torch.manual_seed(0)
    return build_model(
        TransformerConfig(
            inputs=InputConfig(numeric=2, categorical=(3,)),
            head=HeadConfig(kind="step_classification", outputs=3),
            width=8,
            heads=2,
            hidden_width=8,
        )
    ).eval()


def assert_finite_everywhere(model: SequenceModel, inputs: Inputs) -> None:
    """One pass, its gradients, and the same step by step with what is left in the state."""
    prediction = model(inputs).prediction
    assert prediction.isfinite().all()
    prediction.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is None or weight.grad.isfinite().all(), name
    state = model.init_state(inputs.batch)
    for t in range(inputs.steps):
        assert model.step(piece(inputs, t, t + 1), state).prediction.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in state.tensors())


@SCORES
@pytest.mark.parametrize("number", EXTREMES)
def test_extreme_inputs(score: str, number: float) -> None:
    """One reading of a stream, then a whole sequence of them."""
    config = small_config(pool=3, attention={"score": score})
    inputs = replace(random_inputs(config, [9, 9], dtype=torch.float32), lengths=None)
    assert inputs.numeric is not None
    inputs.numeric[0, 4, 0] = number
    inputs.numeric[1] = number
    for model in (small_model(config, dtype=torch.float32), transformer()):
        assert_finite_everywhere(model, inputs)


@pytest.mark.parametrize("number", [NAN, INF, -INF, 1e30, -1e30, 3.4e38])
def test_a_corrupt_reading_is_a_missing_one(number: float) -> None:
    """Whatever a logger writes for a broken sensor: the stream goes on as with a gap."""
    config = small_config(pool=3)
    model = small_model(config, dtype=torch.float32)
    inputs = replace(random_inputs(config, [9], dtype=torch.float32), lengths=None)
    assert inputs.numeric is not None
    gap, corrupt = inputs.numeric.clone(), inputs.numeric.clone()
    gap[0, 4], corrupt[0, 4] = NAN, number
    expected = model(replace(inputs, numeric=gap)).prediction
    assert model(replace(inputs, numeric=corrupt)).prediction.equal(expected)


@SCORES
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e8])
def test_extreme_margins_of_the_router(score: str, bidirectional: bool, size: float) -> None:
    config = small_config(pool=3, attention={"score": score}, bidirectional=bidirectional)
    model = small_model(config, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.layers:
            layer.project.weight[:6] *= size  # type: ignore[union-attr,index]
            layer.project.bias[:6] *= size  # type: ignore[union-attr,index]
    outputs = model(random_inputs(config, [9, 4], dtype=torch.float32))
    assert outputs.prediction.isfinite().all()
    for decision in outputs.decisions:
        assert ((decision.confidence >= 0.5) & (decision.confidence <= 1)).all()
    outputs.prediction.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("policy", [AlwaysConfig(), NeverConfig()], ids=lambda p: p.kind)
@pytest.mark.parametrize("dispatch", ["packed", "padded"])
@pytest.mark.parametrize("length", [1, 33])
def test_all_on_and_all_off(policy: PolicyConfig, dispatch: str, length: int) -> None:
    config = small_config(pool=3, policy=policy, dispatch=dispatch)
    model = small_model(config, dtype=torch.float32)
    inputs = random_inputs(config, [length], dtype=torch.float32)
    outputs = model(inputs)
    on = policy == AlwaysConfig()
    assert all(bool(decision.active.all()) == on for decision in outputs.decisions)
    assert all(bool(decision.active.any()) == on for decision in outputs.decisions)
    assert_finite_everywhere(model, replace(inputs, lengths=None))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ema", ["chunked", "fft"])
def test_one_step(bidirectional: bool, ema: str) -> None:
    """The shortest sequence there is, at every size of a batch."""
    config = small_config(pool=3, bidirectional=bidirectional, ema=ema)
    model = small_model(config)
    for batch in (1, 3):
        inputs = random_inputs(config, [1] * batch)
        assert model(inputs).prediction.isfinite().all()


@pytest.mark.parametrize("policy", [AlwaysConfig(), NeverConfig()], ids=lambda p: p.kind)
@torch.no_grad()
def test_a_hundred_thousand_steps(policy: PolicyConfig) -> None:
    config = ModelConfig(
        inputs=InputConfig(numeric=1),
        head=HeadConfig(kind="forecast", outputs=1),
        width=2,
        layers=1,
        states=2,
        policy=policy,
        pool=(small_config(attention={"query_width": 2, "value_width": 2}).pool[0],),
    )
    model = small_model(config, dtype=torch.float32)
    inputs = random_inputs(config, [100_000], dtype=torch.float32)
    whole = model(inputs).prediction
    assert whole.isfinite().all()
    # What the end says does not depend on how far back the pass began.
    late = model(replace(piece(inputs, 90_000, 100_000), lengths=None)).prediction
    assert_close(late[:, -5000:], whole[:, -5000:], "float32")


@NARROW
@pytest.mark.parametrize("prenorm", [True, False])
def test_autocast_stays_near_float32(dtype: torch.dtype, prenorm: bool) -> None:
    """In one pass with gradients, in chunks and in steps."""
    config = small_config(pool=2, prenorm=prenorm, policy=SOMETIMES)
    model = small_model(config, dtype=torch.float32)
    inputs = replace(random_inputs(config, [14, 14], dtype=torch.float32), lengths=None)
    row = str(dtype).removeprefix("torch.")
    expected = model(inputs).prediction
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(inputs)
        state, chunked = model.init_state(2), model.init_state(2)
        steps = [model.step(piece(inputs, t, t + 1), state).prediction for t in range(14)]
        chunks = [
            model(piece(inputs, a, b), chunked).prediction for a, b in ((0, 5), (5, 6), (6, 14))
        ]
    assert outputs.prediction.dtype == dtype
    assert_close(outputs.prediction, expected, row)
    assert_close(torch.cat(steps, dim=1), expected, row)
    assert_close(torch.cat(chunks, dim=1), expected, row)
    outputs.prediction.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("numeric_alone", [True, False])
def test_autocast_keeps_the_residual_stream_wide(numeric_alone: bool) -> None:
    """Sums over layers are what narrow types lose most at."""
    inputs = InputConfig(numeric=2, categorical=() if numeric_alone else (3,))
    model = small_model(small_config(pool=3, inputs=inputs), dtype=torch.float32)
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(random_inputs(model.config, [5], dtype=torch.float32))
    assert seen == [torch.float32, torch.float32]


@NARROW
@pytest.mark.parametrize("prenorm", [True, False])
def test_a_model_cast_to_a_narrow_type(dtype: torch.dtype, prenorm: bool) -> None:
    """As deployed to save memory: one pass, chunks and steps run, near the float32 model."""
    config = small_config(pool=2, prenorm=prenorm, policy=SOMETIMES)
    wide = small_model(config, dtype=torch.float32)
    model = small_model(config, dtype=dtype)
    inputs = replace(random_inputs(config, [14, 14], dtype=torch.float32), lengths=None)
    row = str(dtype).removeprefix("torch.")
    expected = wide(inputs).prediction
    outputs, state = model(inputs), model.init_state(2)
    assert outputs.prediction.dtype == dtype
    assert_close(outputs.prediction, expected, row)
    first = model(piece(inputs, 0, 6), state).prediction
    steps = [model.step(piece(inputs, t, t + 1), state).prediction for t in range(6, 14)]
    assert_close(torch.cat([first, *steps], dim=1), expected, row)
    outputs.prediction.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())


@NARROW
def test_a_narrow_model_with_a_learned_router(dtype: torch.dtype) -> None:
    """Rounding may flip a decision, so only dtypes and finiteness can be held."""
    config = small_config(pool=3)
    model = small_model(config, dtype=dtype)
    inputs = replace(random_inputs(config, [14, 14], dtype=torch.float32), lengths=None)
    prediction = model(inputs).prediction
    assert prediction.dtype == dtype
    assert_finite_everywhere(model, inputs)
