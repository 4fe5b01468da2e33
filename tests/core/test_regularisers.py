"""Regularisers of routing by hand: values, masks, gradients, signs."""

import math
from dataclasses import replace

import pytest
import torch
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import TrainingConfig
from sma_core.objectives import rate_loss, routing_entropy, routing_loss, z_loss
from sma_core.routing import RoutingDecision


def decision_of(logits: Tensor) -> RoutingDecision:
    margin = logits[..., 1] - logits[..., 0]
    return RoutingDecision(
        active=margin > 0,
        confidence=torch.sigmoid(margin.abs()),
        logits=logits,
        probability=torch.sigmoid(margin),
    )


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.fixture
def valid() -> Tensor:
    return torch.arange(5) < torch.tensor([[5], [2]])


def test_the_z_loss_is_the_mean_squared_log_sum(logits: Tensor, valid: Tensor) -> None:
    expected = logits.exp().sum(-1).log().square()[valid].sum() / 7
    assert_close(z_loss([decision_of(logits)], valid), expected, "float64")
    both = z_loss([decision_of(logits), decision_of(2 * logits)], None)
    each = [z_loss([decision_of(x)], None) for x in (logits, 2 * logits)]
    assert_close(both, torch.stack(each).sum(), "float64")


def test_the_entropy_is_that_of_a_coin(logits: Tensor, valid: Tensor) -> None:
    p = (logits[..., 1] - logits[..., 0]).sigmoid()
    coin = -(p * p.log() + (1 - p) * (1 - p).log())
    assert_close(routing_entropy([decision_of(logits)], valid), coin[valid].sum() / 7, "float64")
    even = decision_of(torch.zeros(1, 4, 1, 2))
    assert routing_entropy([even], None).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [z_loss, routing_entropy])
def test_padding_has_no_part(loss, logits: Tensor, valid: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss([decision_of(logits)], valid), logits)
    assert gradient[valid].all()
    assert not gradient[~valid].any()
    spoilt = torch.where(valid[..., None, None], logits, torch.nan)
    value = loss([decision_of(spoilt)], valid)
    assert_close(value, loss([decision_of(logits)], valid), "float64")


@pytest.mark.parametrize("loss", [z_loss, routing_entropy])
def test_gradients_by_finite_differences(loss, logits: Tensor, valid: Tensor) -> None:
    assert torch.autograd.gradcheck(lambda x: loss([decision_of(x)], valid), (logits,))


def test_saturated_routers_have_finite_entropy_and_gradient() -> None:
    logits = torch.tensor([[[[0.0, 200.0]], [[0.0, -200.0]]]], requires_grad=True)
    entropy = routing_entropy([decision_of(logits)], None)
    entropy.backward()
    assert entropy.item() == pytest.approx(0.0, abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_positive_entropy_weight_undecides_and_a_negative_one_decides(logits: Tensor) -> None:
    for sign in (1.0, -1.0):
        training = TrainingConfig(entropy_weight=sign)
        loss = routing_loss([decision_of(logits)], None, training)
        assert isinstance(loss, Tensor)
        (gradient,) = torch.autograd.grad(loss, logits)
        moved = decision_of(logits - 0.1 * gradient)
        change = routing_entropy([moved], None) - routing_entropy([decision_of(logits)], None)
        assert change.sign() == sign


def test_terms_add_up_by_their_weights(logits: Tensor, valid: Tensor) -> None:
    decisions = [replace(decision_of(logits), auxiliary=torch.tensor(a)) for a in (0.25, 0.5)]
    assert routing_loss(decisions, valid, TrainingConfig()) == 0.75
    training = TrainingConfig(target_rate=0.2, rate_weight=3, z_weight=0.1, entropy_weight=0.01)
    expected = (
        3 * rate_loss(decisions, valid, 0.2)
        + 0.1 * z_loss(decisions, valid)
        - 0.01 * routing_entropy(decisions, valid)
        + 0.75
    )
    total = routing_loss(decisions, valid, training)
    assert isinstance(total, Tensor)
    assert_close(total, expected, "float64")
    assert routing_loss([decision_of(logits)], valid, TrainingConfig()) == 0


def test_the_rate_is_measured_without_the_noise_of_training() -> None:
    logits = torch.zeros(1, 4, 1, 2, requires_grad=True)
    noisy = replace(
        decision_of(logits),
        active=torch.ones(1, 4, 1, dtype=torch.bool),
        noiseless=torch.zeros(1, 4, 1, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(rate_loss([noisy], None, 0.5), logits)
    assert (gradient[..., 1] < 0).all(), "nothing runs in evaluation: margins must rise"
    assert noisy.within(torch.tensor([[True, False, True, True]])).active.sum() == 3
