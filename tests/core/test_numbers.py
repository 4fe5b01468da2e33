"""Extreme inputs, extreme routing, extreme lengths and narrow types give numbers, never NaN."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tests.core.determinism import DETERMINISTIC, assert_repeats
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.tolerances import assert_close

from sma_core import (
    ActiveEMAConfig,
    AlwaysConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    NeverConfig,
    PolicyConfig,
    RandomConfig,
    SequenceModel,
    TemperedSoftmaxConfig,
    TransformerConfig,
    build_model,
)
from sma_core.config import Norm
from sma_core.layer import SMALayer

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
    prediction.float().sum().backward()
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


@NARROW
@pytest.mark.parametrize("norm", ["layer", "scale"])
@pytest.mark.parametrize("cast", [True, False])
def test_extreme_inputs_in_narrow_types(dtype: torch.dtype, norm: Norm, cast: bool) -> None:
    """float16 ends at 65,504: what would overflow there is a missing value there."""
    config = small_config(pool=3, norm=norm)
    for number in (NAN, -INF, 255.0, 257.0, 6e4, -1e15):
        model = small_model(config, dtype=dtype if cast else torch.float32)
        inputs = replace(random_inputs(config, [5, 5], dtype=torch.float32), lengths=None)
        assert inputs.numeric is not None
        inputs.numeric[0, 2, 0] = number
        inputs.numeric[1] = number
        with nullcontext() if cast else torch.autocast("cpu", dtype=dtype):
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


@pytest.mark.parametrize(
    "policy", [AlwaysConfig(), NeverConfig(), TemperedSoftmaxConfig()], ids=lambda p: p.kind
)
def test_a_million_steps(policy: PolicyConfig) -> None:
    """Forward and backward, with every step on, with none, and as a router says."""
    config = small_config(
        layers=1,
        inputs=InputConfig(numeric=1),
        head=HeadConfig(kind="forecast", outputs=1),
        states=2,
        policy=policy,
        attention={"query_width": 2, "value_width": 2},
    )
    model = small_model(config, dtype=torch.float32)
    inputs = Inputs(torch.randn(1, 1_000_000, 1, generator=torch.Generator().manual_seed(0)))
    prediction = model(inputs).prediction
    assert prediction.isfinite().all()
    prediction.square().mean().backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["layers.0.ema.alpha"].count_nonzero() > 0
    if policy.kind != "tempered_softmax":  # at a rounding a router may flip
        # What the end says does not depend on how far back the pass began.
        with torch.no_grad():
            late = model(piece(inputs, 990_000, 1_000_000)).prediction
        assert_close(late[:, -5000:], prediction[:, -5000:], "float32")


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
def test_a_narrow_model_keeps_its_recurrence_wide(dtype: torch.dtype) -> None:
    """A decay near 1 and a sum over all of time are what 8 or 11 bits cannot hold."""
    pool = (ActiveEMAConfig(states=2),)
    model = small_model(replace(small_config(policy=SOMETIMES), pool=pool), dtype=dtype)
    layer = model.layers[0]
    assert isinstance(layer, SMALayer)
    assert all(part.dtype == torch.float32 for part in layer.ema.coefficients())
    state = model.init_state(2)
    model(random_inputs(model.config, [5, 3], dtype=torch.float32), state)
    model.step(replace(random_inputs(model.config, [1, 1]), lengths=None), state)
    for layer_state in state.layers:
        assert layer_state.ema.dtype == torch.float32
        assert layer_state.pool[0].hidden.dtype == torch.float32


@NARROW
def test_a_narrow_model_with_a_learned_router(dtype: torch.dtype) -> None:
    """Rounding may flip a decision, so only dtypes and finiteness can be held."""
    config = small_config(pool=3)
    model = small_model(config, dtype=dtype)
    inputs = replace(random_inputs(config, [14, 14], dtype=torch.float32), lengths=None)
    prediction = model(inputs).prediction
    assert prediction.dtype == dtype
    assert_finite_everywhere(model, inputs)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Operations without a deterministic version raise; memory left unset is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_runs_repeat_bit_for_bit(name: str) -> None:
    """In training, with dropout and with noise where the policy has some, and in streams."""
    assert_repeats(DETERMINISTIC[name], "cpu")
