"""Weights of the public SeqBoat layer: what they compute here, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.core.models import random_inputs, small_config, small_model
from tests.core.seqboat_cases import Case, Problem, Results, difference, read_recorded, run_ours
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor

from sma_core import CheckpointError, ConfigError, GatedAttentionConfig, SMAModel, build_model
from sma_core.interop.seqboat import NAMES, load_layer
from sma_core.layer import SMALayer
from sma_core.reference import reference_forward

RECORDED = read_recorded()
OPTIONS: dict[str, Any] = {"window": 2, "score": "softmax", "prenorm": True}
TABLE = "rel_pos_bias.rel_pos_bias"


def attention(layer: SMALayer) -> GatedAttentionConfig:
    member = layer.config.pool[0]
    assert isinstance(member, GatedAttentionConfig)
    return member


def weights(position: str = "rotary", norm: str = "layer") -> dict[str, Tensor]:
    """A recorded state dict."""
    return next(
        dict(problem.weights)
        for case, problem, _ in RECORDED
        if case.position == position and case.norm == norm
    )


@pytest.mark.parametrize(
    ("case", "problem", "expected"), RECORDED, ids=[case.name for case, _, _ in RECORDED]
)
def test_recorded_cases(case: Case, problem: Problem, expected: Results) -> None:
    found = difference(run_ours(case, problem), expected)
    assert found.output <= TOLERANCES["published layer, output"].relative
    assert found.gradient <= TOLERANCES["published layer, gradient"].relative


def test_recorded_cases_exercise_every_setting() -> None:
    """Each value of each setting, and gradients that would show a wrong weight."""
    cases = [case for case, _, _ in RECORDED]
    for name, values in {
        "bidirectional": {False, True},
        "score": {"softmax", "relu2"},
        "position": {"rotary", "simple", "local"},
        "norm": {"layer", "batch"},
        "prenorm": {False, True},
        "training": {False, True},
        "route": {"some", "one sequence silent", "all silent", "all run"},
    }.items():
        assert {getattr(case, name) for case in cases} == values
    for case, _, expected in RECORDED:
        silent = {name for name, g in expected.gradients.items() if not g.any()}
        assert bool(silent) == (case.route == "all silent")


@pytest.mark.parametrize("position", ["rotary", "simple", "local"])
def test_what_is_read_from_shapes(position: str) -> None:
    case, problem, _ = next(r for r in RECORDED if r[0].position == position)
    local = None if position == "rotary" else position == "local"
    layer = load_layer(problem.weights, **OPTIONS, local=local, dropout=0.25)
    config, found = layer.config, attention(layer)
    assert (config.width, config.states, config.dropout) == (4, 2, 0.25)
    assert config.bidirectional == case.bidirectional
    assert config.norm == case.norm
    assert (found.query_width, found.value_width) == (4, 4)
    assert found.position == position
    if position == "simple":
        assert found.max_positions == 5
    assert layer.training


def test_the_specification_agrees() -> None:
    """The layer in a model, and the model in the slow reference, in float64."""
    case, problem, _ = next(r for r in RECORDED if r[0].norm == "batch" and not r[0].training)
    double = {k: v.double() if v.is_floating_point() else v for k, v in problem.weights.items()}
    layer = load_layer(
        double, window=case.window, score=case.score, prenorm=case.prenorm, local=True
    )
    assert layer.project.weight.dtype == torch.float64
    config = replace(layer.config, inputs=small_config().inputs, head=small_config().head)
    model = small_model(replace(config, norm=case.norm))
    assert isinstance(model, SMAModel)
    model.layers[0].load_state_dict(layer.state_dict())
    inputs = random_inputs(config, [9, 4])
    found = model(inputs)
    expected = reference_forward(model, inputs)
    for b, length in enumerate([9, 4]):
        assert_close(found.prediction[b, :length], expected.prediction[b], "float64")
        assert found.decisions[0].active[b, :length].equal(expected.active[b][0])


def test_no_norm_weights() -> None:
    """Without affine weights the norm is the bare one, and stays it in training."""
    tensors = weights()
    ones = tensors | {
        "norm.norm.weight": torch.ones(4),
        "norm.norm.bias": torch.zeros(4),
    }
    del tensors["norm.norm.weight"], tensors["norm.norm.bias"]
    bare = load_layer(tensors, **OPTIONS, norm_affine=False)
    plain = load_layer(ones, **OPTIONS)
    x, position = torch.randn(2, 7, 4), torch.arange(7).expand(2, -1)
    assert bare(x, position)[0].equal(plain(x, position)[0])
    assert not any(p.requires_grad for p in bare.norm.parameters())
    assert all(p.requires_grad for p in plain.parameters())


def test_loading_moves_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_layer(weights(), **OPTIONS)
    assert torch.rand(1).equal(expected)


def test_the_state_dict_is_copied() -> None:
    tensors = weights()
    layer = load_layer(tensors, **OPTIONS)
    with torch.no_grad():
        layer.project.weight.zero_()
    assert tensors["hx_proj.weight"].any()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_key_is_needed_and_its_shape_checked(name: str) -> None:
    """A state dict with a table and batch norm holds every key there is."""
    local = weights("local", "batch")
    del local[name]
    optional = {TABLE: {"local": None}, "norm.norm.running_mean": {}}
    options = OPTIONS | {"local": True} | optional.get(name, {})
    if name == TABLE:  # without it the layer is a rotary one
        assert attention(load_layer(local, **options)).position == "rotary"
    else:
        # Without the mean the layer has layer norm, and the first of the rest is unknown.
        wrong = "norm.norm.num_batches_tracked" if name.endswith("running_mean") else name
        with pytest.raises(CheckpointError, match=f"^{wrong}: ") as error:
            load_layer(local, **options)
        assert str(error.value).count("\n") == 0

    bent = weights("local", "batch")
    bent[name] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"^[a-z_.]+: .*(not|width) "):
        load_layer(bent, **OPTIONS, local=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"layers.0.gamma": t["gamma"]}, r"^layers\.0\.gamma: unknown .*prefix"),
        (lambda t: t | {"gamma": [1.0, 2.0]}, r"^gamma: must be a tensor of 2 axes, not list"),
        (
            lambda t: t | {"beta": t["beta"].long()},
            r"^beta: must be floating point, not torch\.int",
        ),
        (lambda t: t | {TABLE: torch.zeros(8)}, r"^rel_pos_bias\.rel_pos_bias: has 8 entries"),
        (lambda t: t | {"ssm.delta": torch.zeros(5, 2, 1)}, r"^ssm\.delta: has 5 channels"),
        (lambda t: {}, r"^h_proj\.weight: missing"),
    ],
)
def test_state_dicts_of_something_else(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_layer(change(weights()), **OPTIONS)


def test_norm_weights_against_the_option() -> None:
    with pytest.raises(CheckpointError, match=r"^norm\.norm\.bias: unknown .*norm_affine=False"):
        load_layer(weights(), **OPTIONS, norm_affine=False)
    tensors = weights()
    del tensors["norm.norm.weight"], tensors["norm.norm.bias"]
    with pytest.raises(CheckpointError, match=r"^norm\.norm\.weight: missing .*norm_affine=False"):
        load_layer(tensors, **OPTIONS)


@pytest.mark.parametrize(
    ("position", "options", "message"),
    [
        ("local", {"local": None}, r"^local: .*11 entries.*say local=True or local=False"),
        ("local", {"local": True, "window": 3}, r"^local, window: .*17 entries.*has 11"),
        ("rotary", {"local": True}, r"^local: .*rotary"),
        ("rotary", {"window": 0}, r"^window: "),
        ("rotary", {"dropout": 1.0}, r"^dropout: "),
    ],
)
def test_options_that_do_not_fit(position: str, options: dict[str, Any], message: str) -> None:
    tensors = next(p.weights for case, p, _ in RECORDED if case.position == position)
    with pytest.raises(ConfigError, match=message):
        load_layer(tensors, **OPTIONS | options)


def test_a_table_that_is_not_local_needs_no_word() -> None:
    tensors = next(p.weights for case, p, _ in RECORDED if case.position == "simple")
    assert attention(load_layer(tensors, **OPTIONS)).position == "simple"


def test_a_loaded_layer_fits_a_model() -> None:
    layer = load_layer(weights(), **OPTIONS)
    model = build_model(replace(layer.config, layers=2))
    assert isinstance(model, SMAModel)
    model.layers[1].load_state_dict(layer.state_dict())
