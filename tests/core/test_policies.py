"""What every policy owes: parity, streams, causality, determinism, a plain configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.models import piece, random_inputs, small_blocks, small_config, small_model
from tests.core.parity import (
    against_fast,
    against_reference,
    run_chunks,
    run_steps,
)
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sma_core import (
    BudgetConfig,
    ConfigError,
    GumbelConfig,
    Inputs,
    PolicyConfig,
    SigmoidConfig,
    SMAModel,
    TemperatureConfig,
    TopKConfig,
    TrainingConfig,
    config_from_dict,
    config_to_dict,
    load_checkpoint,
    routing_trace,
    save_checkpoint,
)
from sma_core.costs import product_flops
from sma_core.objectives import routing_loss
from sma_core.reference import reference_forward

STREAMING: dict[str, PolicyConfig] = {
    "gumbel": GumbelConfig(temperature=TemperatureConfig(start=2.0, end=0.7)),
    "sigmoid": SigmoidConfig(temperature=TemperatureConfig(start=1.5)),
    "top-k": TopKConfig(rate=0.4),
    "budget": BudgetConfig(rate=0.4, block=3, window=6),
}
POLICIES = STREAMING | {"top-k ahead": TopKConfig(rate=0.4, evaluation="top_k")}
EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
STREAMS = pytest.mark.parametrize("policy", STREAMING.values(), ids=STREAMING.keys())
# Long enough for the budget to be steered more than once.
LONG = [31, 20, 1]


def full(inputs: Inputs) -> Inputs:
    return replace(inputs, lengths=None)


def decisions(model: SMAModel, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), small_blocks():
        return [decision.active for decision in model(inputs).decisions]


@EVERY
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dispatch", ["packed", "padded"])
def test_outputs_and_gradients_equal_the_specification(
    policy: PolicyConfig, bidirectional: bool, dispatch: str
) -> None:
    config = small_config(pool=3, policy=policy, bidirectional=bidirectional, dispatch=dispatch)
    parity = against_reference(config, torch.float64, LONG)
    limit = TOLERANCES["float64"].relative
    assert parity.output <= limit, f"outputs differ by {parity.output:.3g}"
    assert parity.gradient <= limit, f"gradients differ by {parity.gradient:.3g}"


@EVERY
def test_decisions_equal_the_specification(policy: PolicyConfig) -> None:
    config = small_config(pool=3, policy=policy)
    model, inputs = small_model(config), random_inputs(config, LONG)
    ours, expected = decisions(model, inputs), reference_forward(model, inputs).active
    for b, length in enumerate(LONG):
        for layer, active in enumerate(ours):
            assert active[b, :length].equal(expected[b][layer])
            assert not active[b, length:].any()
    rates = torch.stack([active[0].float().mean(0) for active in ours])
    assert ((rates > 0) & (rates < 1)).all(), "each must run at some steps and not at others"


@STREAMS
@pytest.mark.parametrize("way", [run_chunks, run_steps])
def test_streams_equal_one_pass(policy: PolicyConfig, way) -> None:
    config = small_config(pool=3, policy=policy)
    assert against_fast(config, way, torch.float64) <= TOLERANCES["float64"].relative


@STREAMS
def test_a_stream_of_chunks_then_steps_decides_as_one_pass(policy: PolicyConfig) -> None:
    """In training mode too: a step is never training."""
    config = small_config(pool=3, policy=policy)
    model, inputs = small_model(config), full(random_inputs(config, [60, 60]))
    expected = decisions(model, inputs)
    state = model.init_state(2)
    size = state.nbytes
    found = [decisions_of(model, piece(inputs, a, b), state) for a, b in ((0, 17), (17, 18))]
    model.train()
    for t in range(18, 60):
        outputs = model.step(full(piece(inputs, t, t + 1)), state)
        found.append([decision.active for decision in outputs.decisions])
    for layer, active in enumerate(expected):
        assert torch.cat([part[layer] for part in found], dim=1).equal(active)
    assert state.nbytes == size


def decisions_of(model: SMAModel, inputs: Inputs, state: Any) -> list[Tensor]:
    with torch.no_grad():
        return [decision.active for decision in model(full(inputs), state).decisions]


def test_top_k_that_looks_ahead_streams_by_its_predictor() -> None:
    ahead, causal = (small_config(pool=3, policy=POLICIES[n]) for n in ("top-k ahead", "top-k"))
    inputs = full(random_inputs(ahead, [30, 30]))
    model, other = small_model(ahead), small_model(causal)
    other.load_state_dict(model.state_dict())
    expected = decisions(other, inputs)
    assert not all(a.equal(b) for a, b in zip(decisions(model, inputs), expected, strict=True))
    streamed = decisions_of(model, inputs, model.init_state(2))
    assert all(a.equal(b) for a, b in zip(streamed, expected, strict=True))


@STREAMS
def test_states_are_selected_and_outlive_inference_mode(policy: PolicyConfig) -> None:
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config), full(random_inputs(config, [40, 40, 40]))
    expected = model(inputs).prediction
    with torch.inference_mode():
        state = model.init_state(3)
        for t in range(10):
            model.step(full(piece(inputs, t, t + 1)), state)
    order = torch.tensor([2, 0, 2, 1])
    moved, chosen = inputs.map(lambda tensor: tensor[order]), state.select(order)
    got = model(full(piece(moved, 10, 40)), chosen).prediction
    assert_close(got, expected[order, 10:], "float64")
    # What went on was a copy; and training may go on from a state.
    again = model(full(piece(inputs, 10, 40)), state).prediction
    assert_close(again, expected[:, 10:], "float64")
    again.sum().backward()
    assert not any(tensor.requires_grad for tensor in state.tensors())


@STREAMS
def test_the_future_changes_nothing_earlier(policy: PolicyConfig) -> None:
    config = small_config(pool=3, policy=policy)
    model, inputs = small_model(config), full(random_inputs(config, [40, 40]))
    assert inputs.numeric is not None
    before, decided = model(inputs).prediction, decisions(model, inputs)
    for now in (1, 13, 39):
        late = (torch.arange(40) >= now)[:, None]
        changed = replace(inputs, numeric=inputs.numeric.masked_fill(late, 1e3))
        assert_close(model(changed).prediction[:, :now], before[:, :now], "float64")
        for a, b in zip(decisions(model, changed), decided, strict=True):
            assert a[:, :now].equal(b[:, :now])


def test_top_k_does_look_ahead() -> None:
    """Else the test above would pass for want of a path."""
    config = small_config(pool=3, policy=POLICIES["top-k ahead"])
    model, inputs = small_model(config), full(random_inputs(config, [40]))
    assert inputs.numeric is not None
    late = (torch.arange(40) >= 20)[:, None]
    changed = replace(inputs, numeric=inputs.numeric.masked_fill(late, 1e3))
    assert not decisions(model, changed)[0][:, :20].equal(decisions(model, inputs)[0][:, :20])


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_other_sequences_change_nothing(policy: PolicyConfig, training: bool) -> None:
    if training and isinstance(policy, GumbelConfig):
        pytest.skip("noise is drawn for the batch as it stands")
    config = small_config(pool=2, policy=policy)
    model, lengths = small_model(config).train(training), [23, 14, 1, 0]
    inputs = random_inputs(config, lengths)
    assert inputs.numeric is not None
    together = decisions(model, inputs)
    padding = (torch.arange(23) >= torch.tensor(lengths)[:, None])[..., None]
    filled = replace(inputs, numeric=inputs.numeric.masked_fill(padding, float("nan")))
    assert all(a.equal(b) for a, b in zip(decisions(model, filled), together, strict=True))
    for b, length in enumerate(lengths[:3]):
        alone = full(piece(inputs.map(lambda t, b=b: t[b : b + 1]), 0, length))
        for a, whole in zip(decisions(model, alone), together, strict=True):
            assert a[0].equal(whole[b, :length])
            assert not whole[b, length:].any()


@STREAMS
def test_padding_does_not_enter_a_state(policy: PolicyConfig) -> None:
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config), random_inputs(config, [14, 9, 0])
    assert inputs.numeric is not None
    padding = (torch.arange(14) >= torch.tensor([14, 9, 0])[:, None])[..., None]
    states = []
    for number in (0.0, 1e3):
        states.append(model.init_state(3))
        filled = replace(inputs, numeric=inputs.numeric.masked_fill(padding, number))
        with torch.no_grad():
            model(filled, states[-1])
    for a, b in zip(*(state.tensors() for state in states), strict=True):
        assert a.equal(b)
    untouched = model.init_state(1)
    kept = states[0].select(torch.tensor([2]))
    assert all(a.equal(b) for a, b in zip(kept.tensors(), untouched.tensors(), strict=True))


@EVERY
def test_evaluation_is_deterministic_and_draws_no_numbers(policy: PolicyConfig) -> None:
    config = small_config(pool=3, policy=policy)
    model, inputs = small_model(config), random_inputs(config, LONG)
    before = torch.get_rng_state()
    first = model(inputs).prediction
    assert torch.get_rng_state().equal(before)
    assert model(inputs).prediction.equal(first)


@EVERY
def test_a_training_step_reaches_every_weight(policy: PolicyConfig) -> None:
    """None without a gradient: replicas that train together would wait for each other for ever."""
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config).train(), random_inputs(config, LONG)
    outputs = model(inputs)
    extra = routing_loss(
        outputs.decisions, inputs.valid, TrainingConfig(z_weight=0.1, entropy_weight=0.1)
    )
    (outputs.prediction[inputs.valid].sum() + extra).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@EVERY
def test_a_model_without_a_step_has_finite_losses(policy: PolicyConfig) -> None:
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config).train(), random_inputs(config, [0, 0])
    outputs = model(inputs)
    extra = routing_loss(
        outputs.decisions, inputs.valid, TrainingConfig(z_weight=0.1, entropy_weight=0.1)
    )
    (outputs.prediction.sum() * 0 + extra).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@EVERY
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_routers_are_harmless(policy: PolicyConfig, extreme: float) -> None:
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config, dtype=torch.float32).train(), None
    with torch.no_grad():
        for layer in model.layers:
            layer.project.weight[:4] *= 1e4  # type: ignore[union-attr,index]
            layer.project.bias[1:4:2] += extreme  # type: ignore[union-attr,index]
    inputs = random_inputs(config, LONG, dtype=torch.float32)
    outputs = model(inputs)
    extra = routing_loss(outputs.decisions, inputs.valid, TrainingConfig(entropy_weight=1.0))
    (outputs.prediction[inputs.valid].sum() + extra).backward()
    assert outputs.prediction.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_weigh_and_compare_wide(policy: PolicyConfig, dtype: torch.dtype) -> None:
    config = small_config(pool=2, policy=policy)
    model, inputs = small_model(config, dtype=dtype), random_inputs(config, LONG, dtype=dtype)
    outputs = model(inputs)
    assert outputs.prediction.dtype == dtype
    assert all(d.confidence.dtype == torch.float32 for d in outputs.decisions)
    state = model.init_state(3)
    model.step(full(piece(inputs, 0, 1)), state)


@EVERY
def test_plain_form_and_checkpoint(policy: PolicyConfig, tmp_path: Path) -> None:
    config = small_config(pool=2, policy=policy)
    plain = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(plain) == config
    model, inputs = small_model(config, dtype=torch.float32), random_inputs(config, LONG)
    inputs = replace(inputs, numeric=None if inputs.numeric is None else inputs.numeric.float())
    save_checkpoint(tmp_path / "model", model, provenance={})
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == config
    assert loaded.model(inputs).prediction.equal(model(inputs).prediction)


@EVERY
def test_a_trace_and_its_picture(policy: PolicyConfig) -> None:
    config = small_config(pool=2, policy=policy)
    trace = routing_trace(small_model(config), full(random_inputs(config, [40])))
    assert trace.picture().count("layer 1") == 2
    assert trace.margin is not None
    assert ((trace.confidence > 0) & (trace.confidence <= 1)).all()


@STREAMS
def test_a_step_costs_what_is_counted(policy: PolicyConfig) -> None:
    config = small_config(pool=2, policy=policy, attention={"window": 1})
    model, inputs = small_model(config), full(random_inputs(config, [12]))
    state = model.init_state(1)
    for t in range(11):
        model.step(full(piece(inputs, t, t + 1)), state)
    counter = FlopCounterMode(display=False)
    with counter:
        outputs = model.step(full(piece(inputs, 11, 12)), state)
    rates = [decision.active[0].float().mean(0).tolist() for decision in outputs.decisions]
    assert product_flops(config, rates) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (TopKConfig, {"rate": 0.0}, r"^rate: must be a number in \(0, 1\)"),
        (TopKConfig, {"rate": 0.5, "evaluation": "guess"}, "^evaluation: must be one of predictor"),
        (TopKConfig, {"rate": 0.5, "init_scale": 0}, "^init_scale: must be a number"),
        (BudgetConfig, {"rate": 1.0}, r"^rate: must be a number in \(0, 1\)"),
        (BudgetConfig, {"rate": 0.1, "block": 0}, "^block: must be an integer of at least 1"),
        (BudgetConfig, {"rate": 0.1, "window": 0}, "^window: must be an integer of at least 1"),
        (BudgetConfig, {"rate": 0.1, "window": 40}, r"^window: must be a multiple of block \(16\)"),
        (GumbelConfig, {"temperature": 0.5}, "^temperature: must be a TemperatureConfig"),
        (SigmoidConfig, {"temperature": None}, "^temperature: must be a TemperatureConfig"),
        (TemperatureConfig, {"start": 0.0}, r"^start: must be a number in \(0, inf\)"),
        (TemperatureConfig, {"end": -1.0}, "^end: must be a number"),
        (TemperatureConfig, {"share": 0.0}, r"^share: must be a number in \(0, 1\]"),
        (TemperatureConfig, {"schedule": "step"}, "^schedule: must be one of linear, cosine"),
    ],
)
def test_errors_name_the_field(cls: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**fields)


def test_errors_in_a_plain_form_name_the_path() -> None:
    plain = config_to_dict(small_config(policy=POLICIES["gumbel"]))
    plain["policy"]["temperature"]["end"] = 0
    with pytest.raises(ConfigError, match=r"^policy\.temperature\.end: must be a number"):
        config_from_dict(plain)
