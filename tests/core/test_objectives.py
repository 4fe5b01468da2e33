"""Losses by hand, and the controller of activation rates."""

import math

import pytest
import torch
from torch import Tensor

from sma_core.config import HeadConfig, HeadKind
from sma_core.dataset import Batch
from sma_core.inputs import Inputs
from sma_core.objectives import activation_rates, rate_loss, task_loss
from sma_core.routing import RoutingDecision

STEP = HeadConfig(kind="step_classification", outputs=1)


def batch_of(target: Tensor) -> Batch:
    """The losses read no inputs."""
    size = (target.shape[0], target.shape[1] if target.dim() > 1 else 1)
    return Batch(Inputs(torch.zeros(*size, 1)), target, torch.ones(size, dtype=torch.bool))


def test_a_forecast_is_scored_where_observed_with_spikes_clipped() -> None:
    target = torch.tensor([[[0.5, torch.nan], [3.0, -500.0]]])
    prediction = torch.tensor([[[0.0, 7.0], [1.0, 0.0]]], requires_grad=True)
    loss = task_loss(HeadConfig(kind="forecast", outputs=2), prediction, batch_of(target))
    # Quadratic below 1, linear above, and a target counts as at most 10 from the centre.
    assert loss.total.item() == pytest.approx(0.125 + 1.5 + 9.5)
    assert loss.count.item() == 3
    loss.mean.backward()
    assert prediction.grad is not None
    assert prediction.grad[0, 0].tolist() == pytest.approx([-0.5 / 3, 0.0])


@pytest.mark.parametrize(
    ("kind", "shape"), [("step_classification", (2, 3, 4)), ("sequence_classification", (6, 4))]
)
def test_cross_entropy_leaves_out_unknown_targets(kind: HeadKind, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, -1, 2, -1, 1]).view(shape[:-1])
    loss = task_loss(HeadConfig(kind=kind, outputs=4), logits, batch_of(target), 3.0)
    logs = logits.view(6, 4).log_softmax(-1)
    expected = -(logs[0, 0] + 3 * (logs[1, 3] + logs[3, 2] + logs[5, 1]))
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.weight.item() == 10
    assert loss.count.item() == 4
    right = [logits.view(6, 4)[i].argmax() == target.flatten()[i] for i in (0, 1, 3, 5)]
    assert loss.correct.item() == sum(map(int, right))


def test_one_output_is_binary() -> None:
    logits = torch.tensor([[[2.0], [-1.0], [9.0]]])
    loss = task_loss(STEP, logits, batch_of(torch.tensor([[1, 0, -1]])), 5.0)
    expected = 5 * math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    assert (loss.weight.item(), loss.correct.item(), loss.count.item()) == (6, 2, 2)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 3, 1, requires_grad=True)
    loss = task_loss(STEP, logits, batch_of(torch.full((1, 3), -1)))
    loss.mean.backward()
    assert loss.mean.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def decision_of(margin: Tensor) -> RoutingDecision:
    """A decision of one layer from margins [B, T, M]."""
    return RoutingDecision(
        active=margin > 0,
        confidence=torch.sigmoid(margin.abs()),
        logits=torch.stack([torch.zeros_like(margin), margin], dim=-1),
        probability=torch.sigmoid(margin),
    )


def test_rates_count_valid_steps_only() -> None:
    active = torch.tensor([[[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]], [[-1.0, -1.0]] * 3])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    decision = decision_of(active).within(valid)
    rates = activation_rates([decision, decision], valid)
    assert rates.tolist() == [[pytest.approx(2 / 5), pytest.approx(1 / 5)]] * 2


def test_the_rate_term_pushes_every_valid_margin_towards_the_target() -> None:
    margin = torch.tensor([[[1.0], [2.0], [-1.0], [3.0]]], requires_grad=True)
    valid = torch.tensor([[True, True, True, False]])
    for target, sign in ((0.2, 1.0), (0.9, -1.0)):
        (gradient,) = torch.autograd.grad(
            rate_loss([decision_of(margin).within(valid)], valid, target), margin
        )
        expected = [(2 / 3 - target) / 3] * 3 + [0.0]
        assert gradient.flatten().tolist() == pytest.approx(expected)
        assert gradient[0, 0].sign() == sign
