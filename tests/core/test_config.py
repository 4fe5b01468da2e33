"""Configurations: a wrong value is named by its field, a right one survives its plain form."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sma_core import (
    AlwaysConfig,
    ArchitectureConfig,
    ConfigError,
    GatedAttentionConfig,
    GRUConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    SMAError,
    SubModuleConfig,
    SwiGLUConfig,
    TemperedSoftmaxConfig,
    TransformerConfig,
    build_model,
    config_from_dict,
    config_to_dict,
)
from sma_core.submodules import build_submodule

INPUTS = InputConfig(numeric=2, categorical=(3,))
HEAD = HeadConfig(kind="step_classification", outputs=2)
MODEL = ModelConfig(inputs=INPUTS, head=HEAD)
TRANSFORMER = TransformerConfig(inputs=INPUTS, head=HEAD)

WRONG: list[tuple[type, dict[str, Any], str]] = [
    (InputConfig, {"numeric": -1}, "numeric"),
    (InputConfig, {"numeric": True}, "numeric"),
    (InputConfig, {"numeric": 1.0}, "numeric"),
    (InputConfig, {}, "numeric, categorical"),
    (InputConfig, {"categorical": 3}, "categorical"),
    (InputConfig, {"categorical": (3, 0)}, "categorical[1]"),
    (InputConfig, {"categorical": ("a",)}, "categorical[0]"),
    (InputConfig, {"categorical": (True,)}, "categorical[0]"),
    (HeadConfig, {"kind": "regression", "outputs": 1}, "kind"),
    (HeadConfig, {"kind": ["forecast"], "outputs": 1}, "kind"),
    (HeadConfig, {"kind": "forecast", "outputs": 0}, "outputs"),
    (TemperedSoftmaxConfig, {"init_scale": 0}, "init_scale"),
    (TemperedSoftmaxConfig, {"init_scale": float("inf")}, "init_scale"),
    (TemperedSoftmaxConfig, {"init_scale": float("nan")}, "init_scale"),
    (TemperedSoftmaxConfig, {"init_scale": "1"}, "init_scale"),
    (PeriodicConfig, {"stride": 0}, "stride"),
    (RandomConfig, {"rate": 1.5}, "rate"),
    (RandomConfig, {"rate": -0.1}, "rate"),
    (RandomConfig, {"rate": float("nan")}, "rate"),
    (RandomConfig, {"rate": True}, "rate"),
    (RandomConfig, {"rate": 0.5, "seed": -1}, "seed"),
    (GatedAttentionConfig, {"query_width": 0}, "query_width"),
    (GatedAttentionConfig, {"query_width": 3}, "query_width"),
    (GatedAttentionConfig, {"value_width": None}, "value_width"),
    (GatedAttentionConfig, {"window": 0}, "window"),
    (GatedAttentionConfig, {"max_positions": 0}, "max_positions"),
    (GatedAttentionConfig, {"score": "cosine"}, "score"),
    (GatedAttentionConfig, {"position": "absolute"}, "position"),
    (SwiGLUConfig, {"hidden_width": 0}, "hidden_width"),
]
WRONG_MODEL: list[tuple[ArchitectureConfig, dict[str, Any], str]] = [
    *[
        (base, change, field)
        for base in (MODEL, TRANSFORMER)
        for change, field in (
            ({"inputs": {"numeric": 1}}, "inputs"),
            ({"head": None}, "head"),
            ({"width": 0}, "width"),
            ({"layers": 2.0}, "layers"),
            ({"dropout": 1.0}, "dropout"),
            ({"dropout": -0.1}, "dropout"),
            ({"head": HeadConfig(kind="forecast", outputs=3)}, "head.outputs"),
        )
    ],
    (MODEL, {"states": 0}, "states"),
    (MODEL, {"policy": "always"}, "policy"),
    (MODEL, {"policy": SwiGLUConfig()}, "policy"),
    (MODEL, {"pool": ()}, "pool"),
    (MODEL, {"pool": SwiGLUConfig()}, "pool"),
    (MODEL, {"pool": (SwiGLUConfig(), AlwaysConfig())}, "pool[1]"),
    (MODEL, {"bidirectional": 1}, "bidirectional"),
    (MODEL, {"prenorm": "yes"}, "prenorm"),
    (MODEL, {"ema": "scan"}, "ema"),
    (MODEL, {"dispatch": "ragged"}, "dispatch"),
    (TRANSFORMER, {"heads": 3}, "heads"),
    (TRANSFORMER, {"heads": 64}, "heads"),
    (TRANSFORMER, {"heads": 0}, "heads"),
    (TRANSFORMER, {"hidden_width": 0}, "hidden_width"),
    (TRANSFORMER, {"window": 0}, "window"),
]


@pytest.mark.parametrize(("kind", "fields", "named"), WRONG)
def test_a_wrong_value_is_named(kind: type, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    assert str(caught.value).startswith(f"{named}: ")


@pytest.mark.parametrize(("base", "change", "named"), WRONG_MODEL)
def test_a_wrong_value_of_a_model_is_named(
    base: ArchitectureConfig, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(base, **change)
    assert str(caught.value).startswith(f"{named}: ")


def test_the_edges_of_each_range_are_right() -> None:
    RandomConfig(rate=0)
    RandomConfig(rate=1)
    PeriodicConfig(stride=1)
    GatedAttentionConfig(query_width=1, position="simple")
    replace(MODEL, dropout=0, width=1, layers=1, states=1)
    InputConfig(categorical=(1,))


def test_whole_numbers_become_floats_where_those_are_meant() -> None:
    config = RandomConfig(rate=1)
    assert isinstance(config.rate, float)
    assert config == RandomConfig(rate=1.0)


def test_lists_become_tuples() -> None:
    assert InputConfig(categorical=[3, 4]).categorical == (3, 4)  # type: ignore[arg-type]
    assert replace(MODEL, pool=[SwiGLUConfig()]).pool == (SwiGLUConfig(),)
    hash(replace(MODEL, pool=[SwiGLUConfig()]))


def test_configurations_are_frozen() -> None:
    with pytest.raises(AttributeError):
        MODEL.width = 3  # type: ignore[misc]


# The plain form.

POLICIES = st.one_of(
    st.builds(TemperedSoftmaxConfig, init_scale=st.floats(1e-3, 1e3)),
    st.builds(AlwaysConfig),
    st.builds(NeverConfig),
    st.builds(PeriodicConfig, stride=st.integers(1, 100)),
    st.builds(RandomConfig, rate=st.floats(0, 1), seed=st.integers(0, 2**80)),
)
POOLS = st.lists(
    st.one_of(
        st.builds(SwiGLUConfig, hidden_width=st.integers(1, 99)),
        st.builds(
            GatedAttentionConfig,
            query_width=st.integers(1, 40).map(lambda n: 2 * n),
            window=st.integers(1, 99),
            score=st.sampled_from(["softmax", "relu2"]),
            position=st.sampled_from(["rotary", "simple", "local"]),
        ),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
CONFIGS = st.one_of(
    st.builds(
        ModelConfig,
        inputs=st.builds(
            InputConfig,
            numeric=st.integers(1, 5),
            categorical=st.lists(st.integers(1, 9), max_size=3).map(tuple),
        ),
        head=st.builds(
            HeadConfig,
            kind=st.sampled_from(["step_classification", "sequence_classification"]),
            outputs=st.integers(1, 9),
        ),
        dropout=st.floats(0, 0.99),
        policy=POLICIES,
        pool=POOLS,
        bidirectional=st.booleans(),
        prenorm=st.booleans(),
        ema=st.sampled_from(["chunked", "fft"]),
        dispatch=st.sampled_from(["packed", "padded"]),
    ),
    st.builds(
        TransformerConfig,
        inputs=st.just(INPUTS),
        head=st.just(HEAD),
        heads=st.sampled_from([1, 2, 4, 8]),
        window=st.integers(1, 99),
    ),
    st.builds(GRUConfig, inputs=st.just(INPUTS), head=st.just(HEAD), width=st.integers(1, 99)),
)


@given(config=CONFIGS)
def test_a_round_trip_through_json(config: ArchitectureConfig) -> None:
    plain = config_to_dict(config)
    assert next(iter(plain)) == "architecture"
    read = config_from_dict(json.loads(json.dumps(plain)))
    assert read == config
    assert type(read) is type(config)
    assert config_to_dict(read) == plain


def test_fields_with_a_default_may_be_left_out() -> None:
    plain = {
        "architecture": "sma",
        "inputs": {"numeric": 2, "categorical": [3]},
        "head": {"kind": "step_classification", "outputs": 2},
    }
    assert config_from_dict(plain) == MODEL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "rnn"}, "architecture: 'rnn' is not one of"),
        ({"architecture": None}, "architecture: None is not one of"),
        ({"architecture": ["sma"]}, "architecture: ['sma'] is not one of"),
        ({"depth": 3}, "depth: unknown field; the known ones are inputs, head, width"),
        ({"inputs": 3}, "inputs: must be a table of fields, not 3"),
        ({"inputs": {"numeric": 0}}, "inputs.numeric, categorical: a model needs"),
        ({"inputs": {"numerics": 1}}, "inputs.numerics: unknown field"),
        ({"head": {"kind": "forecast"}}, "head.outputs: missing"),
        ({"policy": {"kind": "coin"}}, "policy.kind: 'coin' is not one of"),
        ({"policy": {"kind": "periodic"}}, "policy.stride: missing"),
        ({"policy": {"kind": "periodic", "stride": 0}}, "policy.stride: must be an integer"),
        ({"pool": {"kind": "swiglu"}}, "pool: must be a list, not"),
        ({"pool": ["swiglu"]}, "pool[0]: must be a table of fields, not 'swiglu'"),
        ({"pool": [{"kind": "swiglu"}, {}]}, "pool[1].kind: None is not one of"),
        ({"pool": [{"kind": "gated_attention", "window": -1}]}, "pool[0].window: must be an"),
        ({"pool": []}, "pool: must hold at least one"),
        ({"width": "64"}, "width: must be an integer"),
    ],
)
def test_an_error_in_a_plain_form_names_the_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(config_to_dict(MODEL) | change)
    assert str(caught.value).startswith(message)


def test_a_missing_field_is_named() -> None:
    plain = config_to_dict(MODEL)
    del plain["head"]
    with pytest.raises(ConfigError, match=r"^head: missing$"):
        config_from_dict(plain)


def test_a_member_of_a_family_needs_a_tag() -> None:
    with pytest.raises(TypeError, match="StrayConfig must define the class attribute 'kind'"):

        class StrayConfig(PolicyConfig):
            pass


def test_what_nobody_registered_is_refused() -> None:
    class StraySubModuleConfig(SubModuleConfig):
        kind = "test_stray_submodule"

    class StrayArchitectureConfig(ArchitectureConfig):
        architecture = "test_stray_architecture"

    with pytest.raises(ConfigError, match="pool: nothing is registered for StraySubModuleConfig"):
        build_submodule(StraySubModuleConfig(), width=8, causal=True)
    stray = StrayArchitectureConfig(inputs=INPUTS, head=HEAD)
    with pytest.raises(ConfigError, match="architecture: no model for StrayArchitectureConfig"):
        build_model(stray)


def test_every_error_of_the_package_has_one_root() -> None:
    import sma_core

    errors = [getattr(sma_core, name) for name in sma_core.__all__ if name.endswith("Error")]
    assert len(errors) == 10
    assert all(issubclass(error, SMAError) for error in errors)


def test_causal_or_not() -> None:
    assert MODEL.causal
    assert not replace(MODEL, bidirectional=True).causal
    assert TRANSFORMER.causal
