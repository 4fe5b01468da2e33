"""Occlusion against one flip at a time in the specification; attribution against differences."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests.core.models import random_inputs, small_config, small_model
from tests.core.tasks import small_transformer
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import (
    AlwaysConfig,
    BudgetConfig,
    GumbelConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    SMAModel,
    TemperedSoftmaxConfig,
    TopKConfig,
    build_model,
    reference,
)
from sma_core.errors import ConfigError, ShapeError
from sma_core.explain import attribution, occlusion
from sma_core.reference import reference_forward
from sma_core.reference_policies import Decided, decide
from sma_core.trace import DecisionIndex, RoutingTrace, routing_trace

LENGTHS = [9, 5]
SHORT = [6, 3]  # for the specification, which is slow
POLICIES = [
    TemperedSoftmaxConfig(),
    GumbelConfig(),
    TopKConfig(rate=0.5),
    BudgetConfig(rate=0.5, block=2, window=4),
    PeriodicConfig(stride=3),
    AlwaysConfig(),
    NeverConfig(),
]
HEADS = [
    HeadConfig(kind="step_classification", outputs=3),
    HeadConfig(kind="sequence_classification", outputs=3),
]


def one_sequence(inputs: Inputs, b: int) -> Inputs:
    return inputs.map(lambda tensor: tensor[b : b + 1])


def margin_of(model: SMAModel, inputs: Inputs, layer: int) -> Tensor:
    margin = model(inputs).decisions[layer].margin
    assert margin is not None
    return margin


def brute_force(
    model: SMAModel, inputs: Inputs, at: DecisionIndex, trace: RoutingTrace, packed: SMAModel
) -> Tensor:
    """Prediction of the specification with one decision of a layer flipped, the others held.

    `packed` is the same model in the layout that has no limit.
    """

    def flipped(policy: Any, layer: int, m: int, y: Any, logits: Any) -> list[Decided]:
        decided = decide(policy, layer, m, y, logits)
        if layer != at.layer:
            return decided
        held = trace.active[layer, at.sequence, : len(y), m].tolist()
        decided = [d._replace(active=ran) for d, ran in zip(decided, held, strict=True)]
        if m == at.submodule:
            d = decided[at.step]
            learned = isinstance(
                model.config.policy, TemperedSoftmaxConfig | TopKConfig | BudgetConfig
            )
            # The probability of running where the policy weighs by it, 1 where it does not.
            surety = torch.tensor(d.surety, dtype=torch.float64)
            weight = d.confidence if d.active or not learned else surety
            decided[at.step] = d._replace(active=not d.active, confidence=weight)
        return decided

    with patch.object(reference, "decide", flipped):
        return reference_forward(packed, one_sequence(inputs, at.sequence)).prediction[0]


def assert_equals_brute_force(config: ModelConfig, *, rows: int, seed: int = 0) -> None:
    model, packed = small_model(config, seed=seed), small_model(config, seed=seed)
    for layer in packed.layers:
        layer.config = replace(layer.config, dispatch="packed")  # type: ignore[assignment]
    inputs = random_inputs(config, SHORT, seed=1)
    trace = routing_trace(model, inputs)
    decisions = [at for b in range(2) for at in trace.decisions(b)]
    before = reference_forward(model, inputs).prediction
    found = occlusion(model, inputs, decisions, rows=rows)
    assert len(decisions) == 9 * config.layers * len(config.pool)
    moved = 0
    for i, at in enumerate(decisions):
        wanted = brute_force(model, inputs, at, trace, packed) - before[at.sequence]
        got = found.change[i]
        if wanted.dim() == 2:
            assert not got[len(wanted) :].any()  # padding
            got = got[: len(wanted)]
        assert (got - wanted).norm() <= 1e-10 * before[at.sequence].norm()
        moved += bool(wanted.norm() > 1e-6)
        assert bool(found.ran[i]) == bool(
            trace.active[at.layer, at.sequence, at.step, at.submodule]
        )
    assert moved > len(decisions) / 2


class TestOcclusion:
    @pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
    def test_equals_one_flip_at_a_time(self, policy: PolicyConfig) -> None:
        # Rows that divide nothing, so that a last batch is short.
        assert_equals_brute_force(small_config(pool=2, policy=policy), rows=5)

    @pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_in_other_models(self, head: HeadConfig, bidirectional: bool) -> None:
        config = small_config(pool=1, head=head, bidirectional=bidirectional, prenorm=bidirectional)
        assert_equals_brute_force(config, rows=64)

    def test_a_flip_frees_no_slot_and_takes_none(self) -> None:
        config = small_config(pool=2, layers=1, dispatch="capacity", capacity=0.3)
        trace = routing_trace(small_model(config), random_inputs(config, SHORT, seed=1))
        assert trace.dropped is not None
        assert trace.dropped.any()
        assert_equals_brute_force(config, rows=64)

    def test_decisions_above_that_follow_are_counted(self) -> None:
        config = small_config(pool=2, layers=3)
        model, inputs = small_model(config), random_inputs(config, [9], seed=1)
        trace = routing_trace(model, inputs)
        found = occlusion(model, inputs, trace.decisions(layer=0))
        assert not found.followed[:, 0].any()
        assert found.followed[:, 1:].sum() > 0
        top = occlusion(model, inputs, trace.decisions(layer=2))
        assert not top.followed.any()

    def test_nothing_before_the_flip_changes_in_a_causal_model(self) -> None:
        config = small_config(pool=2)
        model, inputs = small_model(config), random_inputs(config, [9], seed=1)
        decisions = routing_trace(model, inputs).decisions()
        found = occlusion(model, inputs, decisions)
        for at, by_step in zip(decisions, found.by_step, strict=True):
            assert (by_step[: at.step] < 1e-12).all()
            assert by_step[at.step] > 1e-12
        assert_close(found.effect, found.by_step.norm(dim=1), "float64")

    def test_leaves_the_model_as_it_was(self) -> None:
        config = small_config(pool=2, dropout=0.5)
        model = small_model(config).train()
        model.layers[0].eval()
        parts, weights = dict(model.named_modules()), list(model.parameters())
        modes = [module.training for module in model.modules()]
        occlusion(
            model, random_inputs(config, LENGTHS), [DecisionIndex(layer=0, submodule=0, step=3)]
        )
        attribution(
            model, random_inputs(config, LENGTHS), [DecisionIndex(layer=1, submodule=0, step=3)]
        )
        assert [module.training for module in model.modules()] == modes
        after = dict(model.named_modules())
        assert all(after[name] is part for name, part in parts.items())
        assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
        assert all(weight.grad is None for weight in weights)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_the_table_names_the_largest_first(self) -> None:
        config = small_config(pool=2)
        model, inputs = small_model(config), random_inputs(config, LENGTHS)
        trace = routing_trace(model, inputs)
        found = occlusion(model, inputs, trace.decisions(1))
        lines = found.table(trace.names, count=3).splitlines()
        best = found.decisions[int(found.effect.argmax())]
        assert len(lines) == 3
        where = f"sequence 1, step {best.step}, layer {best.layer}"
        assert lines[0].startswith(f"{where}: {trace.names[best.submodule]} turned ")
        assert "sub-module " in found.table()

    def test_no_flips_at_all(self) -> None:
        config = small_config()
        found = occlusion(small_model(config), random_inputs(config, LENGTHS), [])
        assert found.effect.shape == (0,)


class TestAttribution:
    @pytest.mark.parametrize("policy", POLICIES[:4], ids=lambda policy: policy.kind)
    def test_numeric_channels_equal_central_differences(self, policy: PolicyConfig) -> None:
        config = small_config(pool=2, policy=policy, inputs=InputConfig(numeric=2))
        model, inputs = small_model(config), random_inputs(config, LENGTHS, seed=1)
        assert inputs.numeric is not None
        inputs = replace(inputs, numeric=inputs.numeric.nan_to_num(0.3))
        decisions = [
            DecisionIndex(layer=layer, submodule=m, step=step, sequence=b)
            for layer, m, step, b in [(1, 1, 7, 0), (0, 0, 3, 0), (1, 0, 4, 1), (1, 1, 2, 1)]
        ]
        found = attribution(model, inputs, decisions, rows=3)
        assert found.numeric is not None
        assert inputs.numeric is not None
        wanted = torch.zeros_like(found.numeric)
        x, h = inputs.numeric, 1e-6
        for i, at in enumerate(decisions):
            # Every input of the sequence, moved up and down, as one batch of 2 x 9 x 2 rows.
            moves = h * torch.eye(18, dtype=torch.float64).view(18, 9, 2)
            moved = x[at.sequence] + torch.cat((moves, -moves))
            lengths = torch.full((36,), LENGTHS[at.sequence])
            with torch.no_grad():
                margin = margin_of(model, Inputs(moved, lengths=lengths), at.layer)
            up, down = margin[:, at.step, at.submodule].view(2, 9, 2)
            wanted[i] = (up - down) / (2 * h) * x[at.sequence]
        # Central differences of step 1e-6 in float64: truncation 1e-12, rounding 1e-10.
        assert (found.numeric - wanted).abs().max() < 1e-7 * wanted.abs().max().clamp_min(1)
        assert found.numeric.abs().amax((1, 2)).min() > 1e-4
        for i, at in enumerate(decisions):
            exact = margin_of(model, inputs, at.layer)[at.sequence, at.step, at.submodule]
            assert_close(found.margin[i], exact, "float64")

    def test_embeddings_and_missing_values_enter(self) -> None:
        config = small_config(pool=1)
        model = small_model(config)
        inputs = random_inputs(config, [9], seed=1)
        assert inputs.numeric is not None
        inputs.numeric[0, 4, 1] = float("nan")
        at = DecisionIndex(layer=1, submodule=0, step=6)
        found = attribution(model, inputs, [at])
        assert found.numeric is not None
        assert found.categorical is not None
        # The embedding is linear: scaling what one channel adds to a step gives its derivative.
        stream = model.embed(inputs, inputs.valid).detach().requires_grad_()
        hook = model.embed.register_forward_hook(lambda _, __, out: stream)
        margin = margin_of(model, inputs, 1)
        hook.remove()
        (gradient,) = torch.autograd.grad(margin[0, 6, 0], stream)
        weights = dict(model.embed.named_parameters())
        weight, table = weights["numeric.weight"], weights["categorical.0.weight"]
        indicator = (gradient[0, 4] * weight[:, 3]).sum()
        assert_close(found.numeric[0, 4, 1], indicator, "float64")
        assert indicator.abs() > 1e-6
        category = int(inputs.categorical[0, 2, 0])  # type: ignore[index]
        assert_close(
            found.categorical[0, 2, 0], (gradient[0, 2] * table[category]).sum(), "float64"
        )
        assert_close(
            found.by_step[0, 4],
            found.numeric[0, 4].sum() + found.categorical[0, 4].sum(),
            "float64",
        )

    def test_shares_of_a_linear_router_are_complete(self) -> None:
        # Without norm, bias and bend, the margin is linear in the inputs, and the rest is nothing.
        config = small_config(pool=2, layers=1, inputs=InputConfig(numeric=2), prenorm=False)
        model, inputs = small_model(config), random_inputs(config, LENGTHS, seed=1)
        with torch.no_grad():
            dict(model.embed.named_parameters())["numeric.bias"].zero_()
            model.layers[0].project.bias.zero_()  # type: ignore[union-attr]
        decisions = routing_trace(model, inputs).decisions(0)
        with patch("sma_core.layer.functional.silu", lambda x: x):
            found = attribution(model, inputs, decisions)
        assert (found.rest.abs() <= 1e-10 * found.margin.abs().max()).all()
        assert found.rest.shape == (18,)
        assert attribution(model, inputs, decisions).rest.abs().max() > 1e-3

    def test_inputs_after_the_step_have_no_share_in_a_causal_model(self) -> None:
        config = small_config(pool=2)
        model, inputs = small_model(config), random_inputs(config, [9], seed=1)
        decisions = routing_trace(model, inputs).decisions()
        found = attribution(model, inputs, decisions).by_step
        for at, shares in zip(decisions, found, strict=True):
            assert not shares[at.step + 1 :].any()
            assert shares[at.step] != 0
        both = small_config(pool=2, bidirectional=True)
        ahead = attribution(small_model(both), inputs, decisions).by_step
        assert ahead[0, 1:].any()

    def test_categories_alone(self) -> None:
        config = small_config(inputs=InputConfig(categorical=(3, 5)))
        found = attribution(
            small_model(config),
            random_inputs(config, LENGTHS),
            [DecisionIndex(layer=1, submodule=0, step=2)],
        )
        assert found.numeric is None
        assert found.categorical is not None
        assert found.categorical.shape == (1, 9, 2)
        assert found.categorical.any()

    def test_a_fixed_policy_has_no_margin_to_attribute(self) -> None:
        config = small_config(policy=AlwaysConfig())
        with pytest.raises(ConfigError, match="AlwaysConfig decides without logits"):
            attribution(small_model(config), random_inputs(config, LENGTHS), [])


@pytest.mark.parametrize("explain", [occlusion, attribution])
@pytest.mark.parametrize(
    ("at", "message"),
    [
        (DecisionIndex(layer=2, submodule=0, step=0), r"decisions\[0\].layer: must lie in 0..1"),
        (DecisionIndex(layer=0, submodule=1, step=0), r"submodule: must lie in 0..0, not 1"),
        (DecisionIndex(layer=0, submodule=0, step=5, sequence=1), r"step: must lie in 0..4, not 5"),
        (DecisionIndex(layer=0, submodule=0, step=0, sequence=2), r"sequence: must lie in 0..1"),
        (DecisionIndex(layer=-1, submodule=0, step=0), r"layer: must lie in 0..1, not -1"),
    ],
)
def test_a_decision_that_is_not_there_is_named(
    explain: Any, at: DecisionIndex, message: str
) -> None:
    config = small_config()
    with pytest.raises(ShapeError, match=message):
        explain(small_model(config), random_inputs(config, LENGTHS), [at])


@pytest.mark.parametrize("explain", [occlusion, attribution])
def test_other_bad_arguments(explain: Any) -> None:
    config = small_config()
    with pytest.raises(ShapeError, match="rows: a batch holds at least 1 row, not 0"):
        explain(small_model(config), random_inputs(config, LENGTHS), [], rows=0)
    with pytest.raises(ConfigError, match="'transformer' does not route"):
        explain(build_model(small_transformer()), Inputs(torch.randn(1, 2, 2)), [])
