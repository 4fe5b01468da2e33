"""Counts against the real model: the FLOPs that PyTorch sees, the bytes that a state holds."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from tests.tolerances import TOLERANCES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sma_core.config import (
    AlwaysConfig,
    ArchitectureConfig,
    GatedAttentionConfig,
    GRUConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    SubModuleConfig,
    SwiGLUConfig,
    TransformerConfig,
)
from sma_core.costs import (
    dense_step_flops,
    parameter_count,
    product_flops,
    state_bytes,
    step_flops,
    submodule_flops,
)
from sma_core.errors import ConfigError, StreamingError
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, build_model

SMA = ModelConfig(
    inputs=InputConfig(numeric=3, categorical=(5,)),
    head=HeadConfig(kind="forecast", outputs=3),
    width=24,
    layers=3,
    states=4,
    policy=AlwaysConfig(),
    pool=(
        GatedAttentionConfig(query_width=8, value_width=20, window=100),
        SwiGLUConfig(hidden_width=12),
    ),
)
TRANSFORMER = TransformerConfig(
    inputs=SMA.inputs, head=SMA.head, width=24, heads=3, hidden_width=40, window=40
)

GRU = GRUConfig(inputs=SMA.inputs, head=SMA.head, width=24, layers=3)


def make_inputs(steps: int) -> Inputs:
    return Inputs(torch.randn(1, steps, 3), torch.zeros(1, steps, 1, dtype=torch.int64))


def counted(model: SequenceModel, steps: int) -> float:
    """FLOPs of matrix products, by PyTorch's own count, a time step."""
    # Attention as plain products: not every version of PyTorch counts its fused kernels.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        if steps == 1:
            model.step(make_inputs(1), model.init_state(1))
        else:
            model(make_inputs(steps))
    return counter.get_total_flops() / steps


@pytest.mark.parametrize("config", [SMA, TRANSFORMER, GRU], ids=lambda config: config.architecture)
def test_a_step_costs_what_is_counted(config: ArchitectureConfig) -> None:
    rates = [[1.0, 1.0]] * 3 if config is SMA else ()
    assert product_flops(config, rates) == counted(build_model(config).eval(), 1)


def test_a_skipped_sub_module_costs_nothing() -> None:
    never = replace(SMA, policy=NeverConfig())
    model = build_model(never).eval()
    assert product_flops(never, [[0.0, 0.0]] * 3) == counted(model, 1)


def test_a_forward_costs_a_step_per_step_and_the_edges_of_its_blocks() -> None:
    """What the pool costs over 800 steps: the difference of all on and all off."""
    on, off = (
        counted(build_model(replace(SMA, policy=policy)).eval(), 800)
        for policy in (AlwaysConfig(), NeverConfig())
    )
    pool = product_flops(SMA, [[1.0, 1.0]] * 3) - product_flops(SMA, [[0.0, 0.0]] * 3)
    assert pool <= on - off <= pool * (1 + TOLERANCES["block_flops"].relative)


def test_rates_weigh_the_pool_linearly() -> None:
    """Every fourth step on: a quarter of the way from all off to all on, in count and formula."""
    config = replace(SMA, policy=PeriodicConfig(stride=4))
    model = build_model(config).eval()
    state = model.init_state(1)
    with FlopCounterMode(display=False) as counter:
        for _ in range(40):
            model.step(make_inputs(1), state)
    assert product_flops(config, [[0.25, 0.25]] * 3) == counter.get_total_flops() / 40
    low, high = step_flops(SMA, [[0.0, 0.0]] * 3), dense_step_flops(SMA)
    assert step_flops(SMA, [[0.5, 0.5]] * 3) == pytest.approx((low + high) / 2)


def test_the_recurrence_counts_five_a_state() -> None:
    """One EMA state more in each of 24 channels and 3 layers; both directions count twice."""
    rates = [[1.0, 1.0]] * 3
    more = replace(SMA, states=5)
    assert step_flops(more, rates) - step_flops(SMA, rates) == 5 * 24 * 3
    both, both_more = (replace(config, bidirectional=True) for config in (SMA, more))
    assert step_flops(both_more, rates) - step_flops(both, rates) == 2 * 5 * 24 * 3


@pytest.mark.parametrize("config", [SMA, TRANSFORMER], ids=lambda config: config.architecture)
def test_state_bytes_are_those_of_a_real_state(config: ArchitectureConfig) -> None:
    model = build_model(config)
    assert state_bytes(config) == model.init_state(1).nbytes
    assert state_bytes(config) == model.init_state(7).nbytes / 7
    assert state_bytes(config, torch.bfloat16) == model.init_state(1, dtype=torch.bfloat16).nbytes


def test_state_bytes_leave_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    state_bytes(SMA)
    assert torch.get_rng_state().equal(before)


def test_a_bidirectional_model_has_no_stream() -> None:
    with pytest.raises(StreamingError, match="cannot stream"):
        state_bytes(replace(SMA, bidirectional=True))


def test_parameters_are_counted() -> None:
    assert parameter_count(torch.nn.Linear(3, 4)) == 16


@pytest.mark.parametrize("rates", [(), [[1.0, 1.0]], [[1.0]] * 3, [[1.0, 1.5]] * 3])
def test_rates_of_another_shape_or_range_are_refused(rates: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match="activation: "):
        step_flops(SMA, rates)


def test_an_unknown_sub_module_has_no_count_until_it_registers_one() -> None:
    @dataclass(frozen=True, kw_only=True)
    class NothingConfig(SubModuleConfig):
        kind: ClassVar[str] = "test_nothing"

    try:
        config = replace(SMA, pool=(NothingConfig(),))
        with pytest.raises(ConfigError, match="no count of FLOPs for sub-module 'test_nothing'"):
            dense_step_flops(config)

        @submodule_flops.register
        def _(config: NothingConfig, width: int, causal: bool) -> int:
            return 1000 * width

        bare = step_flops(config, [[0.0]] * 3)
        assert dense_step_flops(config) - bare == pytest.approx(3 * 1000 * 24)
    finally:
        del SubModuleConfig.members["test_nothing"]
