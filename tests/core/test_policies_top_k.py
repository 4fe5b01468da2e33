"""Top-k: exactly k of the valid steps, and a predictor that learns which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import random_inputs, small_config, small_model
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import RouterInputs, RoutingDecision, TopKConfig
from sma_core.routing import build_policy
from sma_core.routing.top_k import TopK, kept, largest


def make(config: TopKConfig, *, width: int = 4, pool: int = 1) -> TopK:
    policy = build_policy(config, width=width, pool=pool, layer=0)
    assert isinstance(policy, TopK)
    return policy


def from_margin(margin: Tensor, width: int = 4, **fields) -> RouterInputs:
    """Router inputs whose margin is given."""
    batch, steps, _ = margin.shape
    return RouterInputs(
        logits=torch.stack((torch.zeros_like(margin), margin), dim=-1),
        features=fields.pop("features", torch.zeros(batch, steps, width)),
        position=torch.arange(steps).expand(batch, -1),
        **fields,
    )


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    rate=st.floats(0.01, 0.99),
    values=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_exactly_k_of_the_valid_steps_and_the_largest(
    lengths: list[int], rate: float, values: int, seed: int
) -> None:
    """Few values make ties, of which the earlier steps run."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(1, *lengths), 2)
    margin = torch.randint(0, values, shape, generator=generator).float()
    margin[margin == 0] = -torch.inf
    valid = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    active = largest(margin, valid, rate)
    assert not active[~valid].any()
    for b, n in enumerate(lengths):
        for m in range(2):
            k = int(active[b, :, m].sum())
            assert abs(k - rate * n) <= 0.5 + 1e-6
            ranked = sorted(range(n), key=lambda t: (-margin[b, t, m].item(), t))
            assert active[b, :, m].nonzero().flatten().tolist() == sorted(ranked[:k])
            assert k == kept(torch.tensor([n]), rate)


def test_k_rounds_half_up() -> None:
    steps = torch.tensor([0, 1, 2, 3, 4, 6, 1_000_000_000])
    assert kept(steps, 0.25).tolist() == [0, 0, 1, 1, 1, 2, 250_000_000]


def test_no_lengths_are_full_lengths() -> None:
    margin = torch.randn(3, 15, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 15, dtype=torch.bool)
    assert largest(margin, None, 0.3).equal(largest(margin, valid, 0.3))


def test_who_decides() -> None:
    """Top-k in training, the predictor in streams; in evaluation what the configuration says."""
    margin = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(0))
    chosen = largest(margin, None, 0.3)
    for evaluation in ("predictor", "top_k"):
        policy = make(TopKConfig(rate=0.3, evaluation=evaluation))
        with torch.no_grad():
            policy.predictor.bias.fill_(1.0)  # it would run at every step

        def active(policy: TopK = policy, **fields: bool) -> Tensor:
            return policy.route(from_margin(margin, **fields)).active

        assert active(training=True).equal(chosen)
        assert active(training=True, streaming=True).equal(chosen)
        assert active(streaming=True).all()
        expected = chosen if evaluation == "top_k" else torch.ones_like(chosen)
        assert active().equal(expected)


def test_a_predicted_tie_skips() -> None:
    policy = make(TopKConfig(rate=0.3))
    assert not policy.route(from_margin(torch.ones(1, 5, 1))).active.any()


def test_the_weight_is_the_probability_of_running() -> None:
    """Also where the margin is negative: k steps run, however little each is worth."""
    margin = torch.tensor([[[-3.0], [-1.0], [-2.0], [-4.0]]], dtype=torch.float64)
    margin.requires_grad_()
    policy = make(TopKConfig(rate=0.5)).double()
    features = torch.zeros(1, 4, 4).double()
    decision = policy.route(from_margin(margin, training=True, features=features))
    tau = policy.theta.detach().exp()
    p = (margin.detach() / tau).sigmoid()
    assert decision.active[0, :, 0].tolist() == [False, True, True, False]
    assert_close(decision.confidence, torch.where(decision.active, p, 1 - p), "float64")
    (decision.confidence * decision.active).sum().backward()
    assert margin.grad is not None
    assert_close(margin.grad, p * (1 - p) / tau * decision.active, "float64")


def test_the_auxiliary_loss_is_cross_entropy_and_reaches_the_predictor_alone() -> None:
    config = small_config(pool=2, layers=1, policy=TopKConfig(rate=0.4))
    model, inputs = small_model(config).train(), random_inputs(config, [14, 9, 1])
    layer = model.layers[0]
    seen: list[Tensor] = []
    layer.policy.predictor.register_forward_hook(lambda m, x, out: seen.append(out))  # type: ignore
    decision: RoutingDecision = model(inputs).decisions[0]
    assert decision.auxiliary is not None
    valid = inputs.valid
    assert valid is not None
    target, p = decision.active[valid].double(), seen[0][valid].sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / valid.sum()
    assert decision.auxiliary.item() == pytest.approx(expected.item())
    decision.auxiliary.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {f"layers.0.policy.predictor.{name}" for name in ("weight", "bias")}


def test_the_predictor_learns_the_threshold() -> None:
    """Features that hold the margin: the predictor finds whom top-k picks, and so the rate."""
    generator = torch.Generator().manual_seed(0)
    policy = make(TopKConfig(rate=0.2), width=3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    direction = torch.tensor([1.0, -2.0, 0.5])

    def batch(**fields: bool) -> RouterInputs:
        features = torch.randn(8, 200, 3, generator=generator)
        return from_margin((features @ direction).unsqueeze(-1), features=features, **fields)

    for _ in range(300):
        loss = policy.route(batch(training=True)).auxiliary
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = batch()
    decision = policy.route(test)
    chosen = largest(decision.margin, None, 0.2)  # type: ignore[arg-type]
    assert (decision.active == chosen).float().mean() > 0.95
    assert decision.active.float().mean().item() == pytest.approx(0.2, abs=0.02)
