"""Traces: the decisions as they were, the picture, and what a collapsed router is told."""

from dataclasses import replace

import pytest
import torch
from tests.core.tasks import small_sma, small_transformer
from torch import Tensor

from sma_core.config import (
    AlwaysConfig,
    GatedAttentionConfig,
    PeriodicConfig,
    SwiGLUConfig,
)
from sma_core.errors import ConfigError
from sma_core.inputs import Inputs
from sma_core.model import build_model
from sma_core.trace import RoutingTrace, routing_trace


def trace_of(active: Tensor, *, learned: bool = True) -> RoutingTrace:
    """A trace of one layer and one sub-module from rows of steps."""
    shaped = active.bool()[None, :, :, None]
    margin = torch.where(shaped, 1.0, -1.0) if learned else None
    return RoutingTrace(
        active=shaped,
        confidence=torch.ones(shaped.shape),
        margin=margin,
        valid=torch.ones(active.shape, dtype=torch.bool),
        names=("attention",),
    )


def test_a_trace_holds_the_decisions_of_a_forward() -> None:
    torch.manual_seed(0)
    model = build_model(small_sma(dropout=0.5)).train()
    inputs = Inputs(torch.randn(3, 20, 2), lengths=torch.tensor([20, 7, 13]))
    trace = routing_trace(model, inputs)
    assert model.training
    model.eval()
    decisions = model(inputs).decisions
    for layer, decision in enumerate(decisions):
        assert trace.active[layer].equal(decision.active)
        assert trace.confidence[layer].equal(decision.confidence)
        assert trace.margin is not None
        assert trace.margin[layer].equal(decision.margin)
    assert trace.names == ("gated_attention", "swiglu")
    expected = [
        [sum(int(d.active[b, :n, m].sum()) for b, n in enumerate([20, 7, 13])) / 40 for m in (0, 1)]
        for d in decisions
    ]
    for rates, wanted in zip(trace.rates(), expected, strict=True):
        assert rates == pytest.approx(wanted)


def test_a_trace_can_continue_a_stream() -> None:
    model = build_model(replace(small_sma(), policy=PeriodicConfig(stride=4))).eval()
    state = model.init_state(1)
    first, second = (routing_trace(model, Inputs(torch.randn(1, 6, 2)), state) for _ in range(2))
    ran = torch.cat([first.active, second.active], dim=2)[0, 0, :, 0]
    assert ran.nonzero().flatten().tolist() == [0, 4, 8]
    assert second.margin is None
    assert second.picture().startswith("steps 6 to 11, 1 a column")


def test_the_picture_shows_each_step_when_there_is_room() -> None:
    trace = trace_of(torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0]]))
    lines = trace.picture(width=60).splitlines()
    assert lines[1] == "layer 0 attention |██  █   |  38%"


def test_the_picture_shades_columns_of_several_steps() -> None:
    active = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]])
    room = len("layer 0 attention || 100%") + 5
    heading, drawn = trace_of(active).picture(width=room).splitlines()
    assert drawn == "layer 0 attention |█ ░▒▓|  50%"
    assert len(drawn) == room
    assert "4 a column" in heading


def test_the_picture_leaves_padding_out_and_shows_the_sequence_asked_for() -> None:
    trace = trace_of(torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0]]))
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    trace = replace(trace, valid=valid)
    assert trace.picture().splitlines()[1].endswith("|█ |  50%")
    assert trace.picture(sequence=1).splitlines()[1].endswith("|  █ |  25%")
    assert trace.rates() == [[pytest.approx(2 / 6)]]


@pytest.mark.parametrize("width", [1, 20, 33, 200])
def test_a_picture_is_no_wider_than_asked_and_loses_no_step(width: int) -> None:
    model = build_model(small_sma()).eval()
    trace = routing_trace(model, Inputs(torch.randn(1, 101, 2)))
    lines = trace.picture(width=width).splitlines()[1:]
    assert len(lines) == 4
    room = max(width, len("layer 0 gated_attention || 100%") + 1)
    assert all(len(line) <= room for line in lines)


def test_a_collapsed_router_is_told_so() -> None:
    never = trace_of(torch.zeros(1, 1000)).warnings()
    assert never == [
        "layer 0: attention ran at 0.0% of 1,000 steps: the model does without it; take it out of "
        "the pool, or train with a target_rate"
    ]
    (always,) = trace_of(torch.ones(1, 1000)).warnings()
    assert "ran at 100.0% of 1,000 steps: the router saves nothing here" in always
    half = torch.arange(1000)[None] % 2
    assert trace_of(half).warnings() == []
    assert trace_of(torch.ones(1, 1000), learned=False).warnings() == []


def test_members_of_the_same_kind_are_told_apart() -> None:
    pool = (SwiGLUConfig(), GatedAttentionConfig(), SwiGLUConfig())
    model = build_model(replace(small_sma(), policy=AlwaysConfig(), pool=pool))
    trace = routing_trace(model, Inputs(torch.randn(1, 2, 2)))
    assert trace.names == ("swiglu[0]", "gated_attention", "swiglu[2]")
    assert trace.rates() == [[1.0] * 3] * 2


def test_a_model_that_does_not_route_has_no_trace() -> None:
    model = build_model(small_transformer())
    with pytest.raises(ConfigError, match="'transformer' does not route"):
        routing_trace(model, Inputs(torch.randn(1, 2, 2)))
