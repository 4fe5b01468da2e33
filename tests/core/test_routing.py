"""Policies: what runs, how surely, and where the gradient goes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import (
    AlwaysConfig,
    ConfigError,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    RoutingDecision,
    TemperedSoftmaxConfig,
)
from sma_core.routing import Policy, build_policy
from sma_core.routing.fixed import _mix, _wrap


def make_policy(config: PolicyConfig, *, pool: int = 2, layer: int = 0, width: int = 16) -> Policy:
    return build_policy(config, width=width, pool=pool, layer=layer)


def decide(policy: Policy, position: Tensor) -> Tensor:
    """Decisions of a fixed policy at positions [B, T]."""
    logits = torch.randn(*position.shape, policy.pool, 2)
    decision = policy(logits, position)
    assert decision.confidence.eq(1).all()
    assert decision.logits is None
    assert decision.probability is None
    assert decision.margin is None
    return decision.active


class TestTemperedSoftmax:
    def test_equals_the_softmax_of_the_paper(self) -> None:
        policy = make_policy(TemperedSoftmaxConfig(), pool=3).double()
        with torch.no_grad():
            policy.theta.copy_(torch.tensor([-1.0, 0.0, 2.0]))  # type: ignore[union-attr,operator]
        logits = torch.randn(2, 50, 3, 2, dtype=torch.float64) * 3
        decision = policy(logits, torch.zeros(2, 50, dtype=torch.int64))
        tau = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64).exp()
        p = (logits / tau[:, None]).softmax(-1)
        assert decision.active.equal(p.argmax(-1) == 1)
        assert_close(decision.confidence, p.amax(-1), "float64")
        assert decision.probability is not None
        assert_close(decision.probability, p[..., 1], "float64")
        assert decision.margin is not None
        assert_close(decision.margin, logits[..., 1] - logits[..., 0], "float64")

    def test_a_tie_skips(self) -> None:
        decision = make_policy(TemperedSoftmaxConfig())(
            torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, dtype=torch.int64)
        )
        assert not decision.active.any()
        assert decision.confidence.eq(0.5).all()

    def test_the_temperature_starts_at_the_root_of_the_width(self) -> None:
        policy = make_policy(TemperedSoftmaxConfig(init_scale=0.5), width=64)
        tau = 0.5 * math.sqrt(64)
        assert policy.theta.exp().tolist() == pytest.approx([tau, tau])  # type: ignore[union-attr,operator]

    def test_the_gradient_goes_through_the_confidence_alone(self) -> None:
        """c = sigmoid(|m| / tau): dc/dm = c (1 - c) sign(m) / tau; the decision adds nothing."""
        policy = make_policy(TemperedSoftmaxConfig(), pool=1).double()
        logits = torch.tensor([[[[0.0, 3.0]], [[1.0, -4.0]]]], dtype=torch.float64)
        logits.requires_grad_()
        decision = policy(logits, torch.zeros(1, 2, dtype=torch.int64))
        assert not decision.active.requires_grad
        decision.confidence.sum().backward()
        c, margin = decision.confidence.detach()[0, :, 0], torch.tensor([3.0, -5.0])
        tau = policy.theta.detach().exp()  # type: ignore[union-attr,operator]
        slope = c * (1 - c) * margin.sign() / tau
        assert logits.grad is not None
        assert_close(logits.grad[0, :, 0], torch.stack((-slope, slope), dim=-1), "float64")
        theta: Tensor = policy.theta.grad  # type: ignore[union-attr,assignment]
        assert_close(theta, -(c * (1 - c) * margin.abs() / tau).sum()[None], "float64")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_narrow_logits_are_weighed_wide(self, dtype: torch.dtype) -> None:
        logits = torch.tensor([[[[0.0, 30.0]], [[0.0, 31.0]]]]).to(dtype)
        policy = make_policy(TemperedSoftmaxConfig(), pool=1).to(dtype)
        confidence = policy(logits, torch.zeros(1, 2, dtype=torch.int64)).confidence
        assert confidence.dtype == torch.float32
        assert confidence[0, 0] < confidence[0, 1] < 1


class TestFixed:
    def test_always_and_never(self) -> None:
        position = torch.arange(10).expand(2, -1)
        assert decide(make_policy(AlwaysConfig(), pool=3), position).all()
        active = decide(make_policy(NeverConfig(), pool=3), position)
        assert active.shape == (2, 10, 3)
        assert not active.any()

    @given(stride=st.integers(1, 50), start=st.integers(0, 10**12))
    def test_periodic_runs_where_the_stride_divides(self, stride: int, start: int) -> None:
        position = start + torch.arange(60)[None]
        active = decide(make_policy(PeriodicConfig(stride=stride), pool=2), position)
        expected = [(start + t) % stride == 0 for t in range(60)]
        assert active[0].tolist() == [[on, on] for on in expected]

    @settings(max_examples=50)
    @given(
        seed=st.integers(0, 2**70),
        rate=st.floats(0, 1),
        cuts=st.lists(st.integers(0, 40), max_size=4),
        start=st.integers(0, 2**40),
    )
    def test_random_draws_do_not_depend_on_chunks(
        self, seed: int, rate: float, cuts: list[int], start: int
    ) -> None:
        policy = make_policy(RandomConfig(rate=rate, seed=seed), layer=3)
        position = start + torch.arange(40)[None]
        whole = decide(policy, position)
        bounds = [0, *sorted(cuts), 40]
        parts = [decide(policy, position[:, a:b]) for a, b in itertools.pairwise(bounds)]
        assert torch.cat(parts, dim=1).equal(whole)
        again = make_policy(RandomConfig(rate=rate, seed=seed), layer=3)
        assert decide(again, position).equal(whole)

    @pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.9])
    @pytest.mark.parametrize("seed", [0, 1, 2, 12345])
    def test_the_rate_is_met(self, rate: float, seed: int) -> None:
        """Within 5 standard deviations of a binomial, for each sub-module of each layer."""
        steps = 20_000
        limit = 5 * math.sqrt(steps * rate * (1 - rate))
        for layer in range(3):
            policy = make_policy(RandomConfig(rate=rate, seed=seed), layer=layer)
            counts = decide(policy, torch.arange(steps)[None]).sum(1)[0]
            assert (counts - steps * rate).abs().max() <= limit

    def test_a_rate_of_one_or_zero_is_exact(self) -> None:
        position = torch.arange(100_000)[None]
        assert decide(make_policy(RandomConfig(rate=1.0)), position).all()
        assert not decide(make_policy(RandomConfig(rate=0.0)), position).any()

    def test_streams_of_draws_are_independent(self) -> None:
        """Two layers, sub-modules or seeds agree as often as coins do."""
        steps = 20_000
        position = torch.arange(steps)[None]
        streams = [
            decide(make_policy(RandomConfig(rate=0.5, seed=seed), layer=layer), position)[0, :, m]
            for seed in (0, 1, 2, 2**40)
            for layer in (0, 1)
            for m in (0, 1)
        ]
        limit = 5 * math.sqrt(steps / 4)
        for i, one in enumerate(streams):
            for other in streams[:i]:
                assert abs(int((one == other).sum()) - steps / 2) <= limit
            lagged = int((one[1:] == one[:-1]).sum())
            assert abs(lagged - (steps - 1) / 2) <= limit

    def test_the_hash_is_splitmix64(self) -> None:
        """Its first outputs from state 0, as published; the state grows by the golden ratio."""
        states = torch.tensor([_wrap(n * 0x9E3779B97F4A7C15) for n in range(3)])
        published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
        assert [n % 2**64 for n in _mix(states).tolist()] == published


def test_nothing_runs_outside_the_valid_steps() -> None:
    active = torch.ones(1, 3, 2, dtype=torch.bool)
    decision = RoutingDecision(active=active, confidence=torch.ones(1, 3, 2))
    within = decision.within(torch.tensor([[True, False, True]]))
    assert within.active[0].tolist() == [[True, True], [False, False], [True, True]]
    assert within.confidence.equal(decision.confidence)


def test_an_unregistered_policy_is_refused() -> None:
    class StrayConfig(PolicyConfig):
        kind = "test_stray_policy"

    with pytest.raises(ConfigError, match="policy: nothing is registered for StrayConfig; known"):
        make_policy(StrayConfig())
