"""The fast path equals the specification, in outputs, decisions and every gradient."""

import ast
import inspect
import itertools
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from tests.core.models import random_inputs, small_config, small_model
from tests.core.parity import (
    LENGTHS,
    Parity,
    against_reference,
    outputs_and_gradients,
    reference_cases,
    run_reference,
)
from tests.tolerances import TOLERANCES

from sma_core import (
    AlwaysConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    reference,
    reference_policies,
    reference_pool,
)
from sma_core.reference import reference_forward

CASES = dict(reference_cases())
# Other layouts and the narrower dtype run a part of the grid; 5 and 7 divide no axis of it, so
# each part holds every value of every axis.
EVERY_FIFTH = list(CASES)[::5]
EVERY_SEVENTH = list(CASES)[::7]
POLICIES = [AlwaysConfig(), NeverConfig(), PeriodicConfig(stride=3), RandomConfig(rate=0.4, seed=7)]
HEADS = [
    HeadConfig(kind="forecast", outputs=2),
    HeadConfig(kind="step_classification", outputs=3),
    HeadConfig(kind="sequence_classification", outputs=3),
]
INPUTS = [
    InputConfig(numeric=2),
    InputConfig(categorical=(3,)),
    InputConfig(numeric=2, categorical=(3, 5)),
]


def assert_parity(parity: Parity, row: str) -> None:
    limit = TOLERANCES[row].relative
    assert parity.output <= limit, f"outputs differ by {parity.output:.3g}"
    assert parity.gradient <= limit, f"gradients differ by {parity.gradient:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_every_configuration(name: str) -> None:
    assert_parity(against_reference(CASES[name], torch.float64), "float64")


@pytest.mark.parametrize("name", EVERY_FIFTH)
def test_float32(name: str) -> None:
    assert_parity(against_reference(CASES[name], torch.float32), "float32")


@pytest.mark.parametrize("name", EVERY_SEVENTH)
@pytest.mark.parametrize("change", [{"dispatch": "padded"}, {"ema": "fft"}], ids=str)
def test_other_layouts(name: str, change: dict[str, str]) -> None:
    config = replace(CASES[name], **change)  # type: ignore[arg-type]
    assert_parity(against_reference(config, torch.float64), "float64")


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dispatch", ["packed", "padded"])
def test_every_policy(policy: PolicyConfig, bidirectional: bool, dispatch: str) -> None:
    config = small_config(pool=3, policy=policy, bidirectional=bidirectional, dispatch=dispatch)
    assert_parity(against_reference(config, torch.float64), "float64")


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize(
    "inputs", INPUTS, ids=lambda i: f"{i.numeric} numeric, {len(i.categorical)} categorical"
)
def test_every_head_and_kind_of_input(head: HeadConfig, inputs: InputConfig) -> None:
    if head.kind == "forecast":
        head = replace(head, outputs=max(1, inputs.numeric))
        inputs = replace(inputs, numeric=head.outputs)
    config = small_config(pool=2, head=head, inputs=inputs)
    assert_parity(against_reference(config, torch.float64), "float64")


@pytest.mark.parametrize(
    "policy", [None, *POLICIES], ids=lambda p: "tempered_softmax" if p is None else p.kind
)
@pytest.mark.parametrize("dispatch", ["packed", "padded"])
def test_decisions(policy: PolicyConfig | None, dispatch: str) -> None:
    config = small_config(pool=3, dispatch=dispatch)
    if policy is not None:
        config = replace(config, policy=policy)
    model, inputs = small_model(config), random_inputs(config, LENGTHS)
    expected = reference_forward(model, inputs).active
    got = torch.stack([decision.active for decision in model(inputs).decisions])
    for b, length in enumerate(LENGTHS):
        assert got[:, b, :length].equal(expected[b])
        assert not got[:, b, length:].any()
    if policy is None:
        ran = got[:, 0]
        assert ran.any()
        assert not ran.all(), "a test of routing needs steps that run and steps that do not"


@pytest.mark.parametrize("dispatch", ["packed", "padded"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_sequences_without_an_active_row(dispatch: str, bidirectional: bool) -> None:
    """One sequence of a batch, then all of them, run nothing; and one has no step at all."""
    policy = RandomConfig(rate=0.3, seed=7)  # silent at the first step
    config = small_config(
        pool=2, policy=policy, dispatch=dispatch, bidirectional=bidirectional, layers=1
    )
    model, inputs = small_model(config), random_inputs(config, [1, 14, 0])
    ran = model(inputs).decisions[0].active.any(1)
    assert ran.any(1).tolist() == [False, True, False]
    assert_parity(against_reference(config, torch.float64, lengths=[1, 14, 0]), "float64")
    assert_parity(against_reference(config, torch.float64, lengths=[1, 1]), "float64")


def test_an_empty_sequence_is_classified_by_the_bias_alone() -> None:
    config = small_config(head=HEADS[2])
    model, inputs = small_model(config), random_inputs(config, [0, 5])
    assert model(inputs).prediction[0].equal(model.head.bias)
    assert_parity(against_reference(config, torch.float64, lengths=[0, 5]), "float64")


@pytest.mark.parametrize("name", EVERY_FIFTH)
def test_the_comparison_would_notice_every_weight(name: str) -> None:
    """A weight whose gradient is zero here would be compared with nothing."""
    config = CASES[name]
    gradients = outputs_and_gradients(
        small_model(config), random_inputs(config, LENGTHS), run_reference
    )[1]
    assert not [name for name, gradient in gradients.items() if not gradient.any()]


def test_the_grid_holds_every_combination() -> None:
    axes = [
        (c.bidirectional, c.prenorm, a.score, a.position, a.window)  # type: ignore[attr-defined]
        for c in CASES.values()
        for a in c.pool[:1]
    ]
    values = [sorted({axis[i] for axis in axes}) for i in range(5)]
    assert sorted(axes) == sorted(itertools.product(*values))
    for part in (EVERY_FIFTH, EVERY_SEVENTH):
        words = [set(column) for column in zip(*(name.split(", ") for name in part), strict=True)]
        every = [set(column) for column in zip(*(name.split(", ") for name in CASES), strict=True)]
        assert words == every


@pytest.mark.parametrize("module", [reference, reference_policies, reference_pool])
def test_the_specification_shares_no_code_with_the_fast_path(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {
        node.module: {alias.name for alias in node.names}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sma_core")
    }
    configurations = {"sma_core.config", "sma_core.policy_configs", "sma_core.submodule_configs"}
    itself = {"sma_core.reference_policies", "sma_core.reference_pool"}
    assert set(imported) <= configurations | itself | {"sma_core.model", "sma_core.norms"}
    # Classes to tell apart, and to read weights of; they are never called.
    assert imported.get("sma_core.model", set()) <= {"Inputs", "SMAModel"}
    assert imported.get("sma_core.norms", set()) <= {"BatchNorm", "LayerNorm", "ScaleNorm"}
    calls = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not calls & {"forward", "step", "transform", "rotate", "bias", "compress", "extract"}


def test_the_specification_refuses_what_it_has_no_equations_for() -> None:
    class UnknownConfig(PolicyConfig):
        kind = "test_without_equations"

    config = small_config()
    model = small_model(config)
    model.layers[0].policy.config = UnknownConfig()  # type: ignore[union-attr]
    with pytest.raises(NotImplementedError, match="no equations here for UnknownConfig"):
        reference_forward(model, random_inputs(config, [2]))


def test_wrong_arithmetic_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: a fast path that is off by a part in a million fails it."""
    off = lambda x: torch.nn.functional.sigmoid(x) * x * (1 + 1e-6)  # noqa: E731
    monkeypatch.setattr("sma_core.layer.functional.silu", off)
    config: ModelConfig = CASES[EVERY_FIFTH[0]]
    parity = against_reference(config, torch.float64)
    assert parity.output > TOLERANCES["float64"].relative
    assert parity.gradient > TOLERANCES["float64"].relative
