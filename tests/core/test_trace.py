"""Traces: the decisions as they were, the picture, and what a collapsed router is told."""

from dataclasses import replace

import pytest
import torch
from tests.core.models import random_inputs, small_config, small_model
from tests.core.tasks import small_sma, small_transformer
from torch import Tensor

from sma_core.config import (
    AlwaysConfig,
    GatedAttentionConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    SwiGLUConfig,
    TemperedSoftmaxConfig,
)
from sma_core.dispatch import PackedDispatch
from sma_core.errors import ConfigError
from sma_core.inputs import Inputs
from sma_core.model import build_model
from sma_core.policy_configs import BudgetConfig, SigmoidConfig, TopKConfig
from sma_core.sight import rows_in_sight, submodule_reach
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)
from sma_core.submodules import build_submodule
from sma_core.trace import DecisionIndex, RoutingTrace, routing_trace


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


@pytest.mark.parametrize(
    ("policy", "weighs"),
    [
        (TemperedSoftmaxConfig(), True),
        (BudgetConfig(rate=0.5, block=2, window=4), True),
        (TopKConfig(rate=0.5), True),
        (SigmoidConfig(), False),
        (RandomConfig(rate=0.5, seed=1), False),
    ],
    ids=lambda case: getattr(case, "kind", ""),
)
def test_surety_means_the_same_for_every_policy(policy: PolicyConfig, weighs: bool) -> None:
    config = small_config(pool=2, policy=policy)
    trace = routing_trace(small_model(config), random_inputs(config, [20]))
    ran = trace.active
    assert ran.any()
    if trace.probability is None:
        assert trace.surety.eq(1).all()
        return
    assert trace.surety[ran].equal(trace.probability[ran])
    assert trace.surety[~ran].equal(1 - trace.probability[~ran])
    assert trace.confidence[ran].equal(
        trace.surety[ran] if weighs else torch.ones(int(ran.sum())).double()
    )


def test_dropped_steps_are_in_the_trace_and_under_the_picture() -> None:
    config = small_config(policy=AlwaysConfig(), dispatch="capacity", capacity=0.25)
    trace = routing_trace(small_model(config), random_inputs(config, [8, 3]))
    assert trace.dropped is not None
    # Two slots each: of equals the first run, and padding is not to run at all.
    assert trace.dropped[0, :, :, 0].int().tolist() == [
        [0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, *[0] * 5],
    ]
    lines = trace.picture().splitlines()
    assert lines[-2:] == [f"layer {i} gated_attention: no slot at 6 steps" for i in (0, 1)]
    packed = small_config(policy=AlwaysConfig())
    trace = routing_trace(small_model(packed), random_inputs(packed, [8]))
    assert trace.dropped is None
    assert "no slot" not in trace.picture()


def test_decisions_are_listed_for_one_sequence_without_its_padding() -> None:
    trace = trace_of(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]))
    trace = replace(trace, valid=torch.tensor([[True] * 4, [True, True, False, False]]))
    assert trace.decisions(1) == [
        DecisionIndex(layer=0, submodule=0, step=step, sequence=1) for step in (0, 1)
    ]
    assert [at.step for at in trace.decisions(ran=True)] == [0, 2]
    assert [at.step for at in trace.decisions(ran=False)] == [1, 3]
    assert trace.decisions(layer=1) == []


class TestSight:
    """The span that a row attends, in original time."""

    @pytest.mark.parametrize("causal", [True, False])
    def test_equals_a_count_of_rows(self, causal: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        active = torch.rand(2, 3, 12, 4, generator=generator) < 0.5
        position = torch.arange(12) + torch.tensor([[0], [5], [100]])
        reach = [0, 2, 30, None]
        found = rows_in_sight(active, position, reach, causal=causal)
        for layer, b, t, m in torch.cartesian_prod(*map(torch.arange, active.shape)).tolist():
            wanted = [-1, -1]
            if active[layer, b, t, m]:
                rows = active[layer, b, :, m].nonzero().flatten().tolist()
                i, far = rows.index(t), 12 if reach[m] is None else reach[m]
                last = i if causal else min(len(rows) - 1, i + far)
                ends = rows[max(0, i - far)], rows[last]
                wanted = [int(position[b, end]) for end in ends]
            assert found[layer, b, t, m].tolist() == wanted

    @pytest.mark.parametrize(
        "member",
        [
            GatedAttentionConfig(query_width=4, value_width=4, window=2),
            FullAttentionConfig(heads=1, head_width=4, max_rows=3),
            LocalConvolutionConfig(kernel_size=3),
            SwiGLUConfig(hidden_width=4),
            ActiveEMAConfig(),
        ],
        ids=lambda member: member.kind,
    )
    @pytest.mark.parametrize("causal", [True, False])
    def test_is_what_a_sub_module_really_sees(self, member, causal: bool) -> None:
        """Gradients: rows out of sight have none, and the farthest in sight have some."""
        torch.manual_seed(0)
        module = build_submodule(member, width=8, causal=causal).double()
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(0.5 * torch.randn_like(weight))
        active = (torch.arange(19) % 2 == 0)[None, :, None]
        position = torch.arange(19)[None]
        (dispatch,) = PackedDispatch.plan(active, position)
        x = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
        out = module(x, dispatch.rows)
        sight = rows_in_sight(active[None], position, [submodule_reach(module)], causal=causal)
        for row in range(10):
            (gradient,) = torch.autograd.grad(out[row].sum(), x, retain_graph=True)
            seen = (2 * gradient.abs().sum(1).gt(1e-12).nonzero().flatten()).tolist()
            assert [seen[0], seen[-1]] == sight[0, 0, 2 * row, 0].tolist()

    def test_spans_count_from_the_start_of_the_stream(self) -> None:
        config = replace(small_sma(), policy=PeriodicConfig(stride=4))
        model = build_model(config).eval()
        state = model.init_state(1)
        _, trace = (routing_trace(model, Inputs(torch.randn(1, 10, 2)), state) for _ in range(2))
        assert trace.sight is not None
        assert trace.span is not None
        # Positions 10 to 19: it runs at 12 and 16.
        assert trace.sight[0, 0, :, 0].tolist()[2] == [12, 12]
        assert trace.sight[0, 0, :, 0].tolist()[6] == [12, 16]
        assert trace.span[0, 0, :, 0].tolist() == [-1, -1, 0, -1, -1, -1, 4, -1, -1, -1]
        assert trace.span[0, 0, :, 1].tolist() == [-1, -1, 0, -1, -1, -1, 0, -1, -1, -1]
