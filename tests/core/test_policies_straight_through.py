"""Straight-through policies by hand: values, gradients, noise, temperatures."""

import math
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.core.models import random_inputs, small_config, small_model
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import (
    GumbelConfig,
    PolicyConfig,
    RouterInputs,
    RoutingDecision,
    SigmoidConfig,
    TemperatureConfig,
)
from sma_core.routing import Policy, build_policy, set_progress

SCHEDULED = TemperatureConfig(start=4.0, end=0.5, schedule="linear")
BOTH = pytest.mark.parametrize(
    "config", [SigmoidConfig(temperature=SCHEDULED), GumbelConfig(temperature=SCHEDULED)], ids=str
)


def route(policy: Policy, logits: Tensor, *, training: bool) -> RoutingDecision:
    position = torch.arange(logits.shape[1]).expand(logits.shape[0], -1)
    features = torch.zeros(*logits.shape[:2], policy.width)
    return policy.route(
        RouterInputs(logits=logits, features=features, position=position, training=training)
    )


def make(config: PolicyConfig, pool: int = 1) -> Policy:
    return build_policy(config, width=4, pool=pool, layer=0).double()


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 2, generator=generator, dtype=torch.float64) * 2


def slope(p: Tensor, tau: float) -> Tensor:
    """Derivative of sigmoid(m / tau)."""
    return p * (1 - p) / tau


@BOTH
def test_the_weight_is_one_and_has_the_gradient_of_the_probability(config: PolicyConfig) -> None:
    logits = random_logits(2, 30, 3).requires_grad_()
    decision = route(make(config, pool=3), logits, training=False)
    margin = (logits[..., 1] - logits[..., 0]).detach()
    assert decision.active.equal(margin > 0)
    assert decision.confidence.eq(1).all()
    assert_close(cast(Tensor, decision.probability), margin.sigmoid(), "float64")
    weights = random_logits(2, 30, 3, seed=1)[..., 0]
    (decision.confidence * weights).sum().backward()
    expected = weights * slope((margin / 0.5).sigmoid(), 0.5)
    assert_close(cast(Tensor, logits.grad), torch.stack((-expected, expected), -1), "float64")


@BOTH
def test_a_tie_skips(config: PolicyConfig) -> None:
    decision = route(make(config), torch.ones(1, 3, 1, 2).double(), training=False)
    assert not decision.active.any()


def test_a_sampled_step_has_the_gradient_at_the_sample() -> None:
    logits = random_logits(1, 50, 2).requires_grad_()
    policy = make(GumbelConfig(temperature=SCHEDULED), pool=2)
    set_progress(policy, 0.5)
    tau = 2.25
    torch.manual_seed(3)
    decision = route(policy, logits, training=True)
    torch.manual_seed(3)
    u = torch.rand(1, 50, 2, dtype=torch.float64)
    noisy = (logits[..., 1] - logits[..., 0]).detach() + u.log() - (1 - u).log()
    assert decision.active.equal(noisy > 0)
    assert decision.noiseless is not None
    assert decision.noiseless.equal(logits[..., 1] > logits[..., 0])
    assert decision.confidence.eq(1).all()
    decision.confidence.sum().backward()
    expected = slope((noisy / tau).sigmoid(), tau)
    assert_close(cast(Tensor, logits.grad), torch.stack((-expected, expected), -1), "float64")


def test_noise_is_torch_s_and_runs_with_the_probability_of_the_softmax() -> None:
    steps = 40_000
    logits = torch.tensor([[0.0, -2.0], [0.0, 0.5], [1.0, 3.0]], dtype=torch.float64)
    policy = make(GumbelConfig(), pool=3)
    torch.manual_seed(0)
    first = route(policy, logits.expand(1, steps, -1, -1), training=True).active
    second = route(policy, logits.expand(1, steps, -1, -1), training=True).active
    torch.manual_seed(0)
    again = route(policy, logits.expand(1, steps, -1, -1), training=True).active
    assert again.equal(first)
    assert not second.equal(first)
    p = logits.softmax(-1)[:, 1]
    assert ((first[0].double().mean(0) - p).abs() <= 5 * (p * (1 - p) / steps).sqrt()).all()


def test_a_sigmoid_draws_nothing() -> None:
    logits = random_logits(1, 50, 2)
    before = torch.get_rng_state()
    decision = route(make(SigmoidConfig(), pool=2), logits, training=True)
    assert torch.get_rng_state().equal(before)
    assert decision.active.equal(logits[..., 1] > logits[..., 0])
    assert decision.noiseless is None


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_a_skipped_step_has_no_part_in_output_or_gradient(
    config: PolicyConfig, training: bool
) -> None:
    """The row of the router that decides sums over the steps that ran, and over no others."""
    small = small_config(layers=1, policy=config)
    model = small_model(small).train(training)
    inputs = random_inputs(small, [12])
    weights = []
    policy = cast(Policy, model.layers[0].policy)
    original = policy.route

    def spy(router: RouterInputs, state: object = None) -> RoutingDecision:
        decision = original(router, state)
        decision.confidence.retain_grad()
        weights.append(decision)
        return decision

    policy.route = spy  # type: ignore[method-assign]
    model(inputs).prediction.sum().backward()
    (decision,) = weights
    grad = decision.confidence.grad
    assert decision.active.any()
    assert not decision.active.all()
    assert grad is not None
    assert not grad[~decision.active].any()
    assert grad[decision.active].all()


@BOTH
def test_evaluation_and_checkpoints_do_not_depend_on_the_schedule(config: PolicyConfig) -> None:
    small = small_config(policy=config)
    model, inputs = small_model(small), random_inputs(small, [14, 9, 1])
    before = model(inputs)
    names = set(model.state_dict())
    set_progress(model, 0.7)
    after = model(inputs)
    assert after.prediction.equal(before.prediction)
    assert set(model.state_dict()) == names
    assert not any("temperature" in name for name in names)


class TestSchedule:
    def test_constant(self) -> None:
        temperature = TemperatureConfig(start=0.7, schedule="exponential")
        assert [temperature.at(x) for x in (0.0, 0.3, 1.0)] == pytest.approx([0.7] * 3)
        assert temperature.final == 0.7

    @pytest.mark.parametrize(
        ("schedule", "quarter", "half"),
        [
            ("linear", 3.25, 2.5),
            ("cosine", 1 + 3 * (1 + math.cos(math.pi / 4)) / 2, 2.5),
            ("exponential", 4 * 4**-0.25, 2.0),
        ],
    )
    def test_shapes(self, schedule, quarter: float, half: float) -> None:
        temperature = TemperatureConfig(start=4.0, end=1.0, schedule=schedule, share=0.5)
        found = [temperature.at(x) for x in (0.0, 0.125, 0.25, 0.5, 0.9)]
        assert found == pytest.approx([4.0, quarter, half, 1.0, 1.0])

    @given(
        start=st.floats(1e-3, 1e3),
        end=st.floats(1e-3, 1e3),
        schedule=st.sampled_from(["linear", "cosine", "exponential"]),
        share=st.floats(0.01, 1.0),
        a=st.floats(0, 1),
        b=st.floats(0, 1),
    )
    def test_it_runs_one_way_and_stays_inside(
        self, start: float, end: float, schedule, share: float, a: float, b: float
    ) -> None:
        temperature = TemperatureConfig(start=start, end=end, schedule=schedule, share=share)
        early, late = (temperature.at(x) for x in sorted((a, b)))
        slack = 1e-9 * max(start, end)
        assert min(start, end) - slack <= early <= max(start, end) + slack
        assert (late - early) * (end - start) >= -slack * abs(end - start)
        assert temperature.at(0.0) == pytest.approx(start)
        assert temperature.at(1.0) == pytest.approx(end)
