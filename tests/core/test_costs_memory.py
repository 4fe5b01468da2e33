"""Bytes moved, kept and held against what a pass really moves, keeps and holds."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.memory import allocated_bytes, kept_bytes, moved_bytes, peak_bytes
from tests.tolerances import TOLERANCES

from sma_core import (
    ActiveEMAConfig,
    ArchitectureConfig,
    BudgetConfig,
    FullAttentionConfig,
    GatedAttentionConfig,
    GRUConfig,
    GumbelConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    LocalConvolutionConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    SigmoidConfig,
    SubModuleConfig,
    SwiGLUConfig,
    TemperedSoftmaxConfig,
    TopKConfig,
    TransformerConfig,
    build_model,
)
from sma_core.costs import (
    Extent,
    ModelCosts,
    Operation,
    linear,
    model_costs,
    state_bytes,
    step_flops,
    submodule_flops,
    submodule_operations,
)
from sma_core.costs.parts import model_parts
from sma_core.errors import ConfigError

BATCH, STEPS = 4, 300
ATTENTION = GatedAttentionConfig(query_width=16, value_width=32, window=40)
POOLS: dict[str, tuple[SubModuleConfig, ...]] = {
    "attention": (ATTENTION,),
    "relu2, simple": (replace(ATTENTION, score="relu2", position="simple"),),
    "local": (replace(ATTENTION, position="local"),),
    "swiglu": (SwiGLUConfig(hidden_width=48),),
    "convolution": (LocalConvolutionConfig(kernel_size=4),),
    "full attention": (FullAttentionConfig(heads=2, head_width=16, max_rows=128),),
    "active ema": (ActiveEMAConfig(states=4),),
}
POOLS["all"] = tuple(member for pool in POOLS.values() for member in pool)
RATES: dict[float, PolicyConfig] = {
    0.0: NeverConfig(),
    0.1: PeriodicConfig(stride=10),
    0.5: PeriodicConfig(stride=2),
    1.0: PeriodicConfig(stride=1),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"dispatch": "padded"},
    "capacity": {"dispatch": "capacity", "capacity": 0.7},
    "bidirectional": {"bidirectional": True},
    "fft": {"ema": "fft"},
    "batch norm": {"norm": "batch"},
    "scale norm": {"norm": "scale"},
    "post-norm": {"prenorm": False},
    "dropout": {"dropout": 0.1},
    "classes": {"head": HeadConfig(kind="sequence_classification", outputs=3)},
}
AROUND: dict[str, Any] = {
    "inputs": InputConfig(numeric=3, categorical=(5,)),
    "head": HeadConfig(kind="forecast", outputs=3),
    "width": 32,
}
TRANSFORMER = TransformerConfig(**AROUND, heads=2, hidden_width=96, window=40)
GRU = GRUConfig(**AROUND, layers=3)


def sma(pool: str = "attention", rate: float = 0.5, **fields: Any) -> ModelConfig:
    return ModelConfig(**(AROUND | fields), states=4, pool=POOLS[pool], policy=RATES[rate])


def random_inputs(batch: int = BATCH, steps: int = STEPS) -> Inputs:
    torch.manual_seed(0)
    categorical = torch.zeros(batch, steps, 1, dtype=torch.int64)
    return Inputs(torch.randn(batch, steps, 3), categorical)


def costs(config: ArchitectureConfig, rate: float, dtype: torch.dtype) -> ModelCosts:
    rates = [[rate] * len(config.pool)] * config.layers if isinstance(config, ModelConfig) else ()
    return model_costs(config, rates, batch=BATCH, steps=STEPS, dtype=dtype)


def assert_near(model: float, measured: float, row: str) -> None:
    assert model == pytest.approx(measured, rel=TOLERANCES[row].relative)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rate", RATES)
def test_kept_bytes_are_those_that_autograd_saves(pool: str, rate: float, dtype: str) -> None:
    config = sma(pool, rate, layers=1)
    measured = kept_bytes(build_model(config), random_inputs(), DTYPES[dtype])
    assert_near(costs(config, rate, DTYPES[dtype]).kept_bytes, measured, "kept_bytes")


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_bytes_of_every_variant_of_a_layer(variant: str) -> None:
    config = sma("swiglu", **VARIANTS[variant])
    measured = kept_bytes(build_model(config), random_inputs(), torch.float32)
    assert_near(costs(config, 0.5, torch.float32).kept_bytes, measured, "kept_bytes")


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_bytes_of_the_transformer(dtype: str) -> None:
    measured = kept_bytes(build_model(TRANSFORMER), random_inputs(), DTYPES[dtype])
    assert_near(costs(TRANSFORMER, 0.0, DTYPES[dtype]).kept_bytes, measured, "kept_bytes")


def test_kept_bytes_of_the_recurrent_model() -> None:
    measured = kept_bytes(build_model(GRU), random_inputs(), torch.float32)
    assert_near(costs(GRU, 0.0, torch.float32).kept_bytes, measured, "kept_bytes")


@pytest.mark.parametrize(
    "policy",
    [
        TemperedSoftmaxConfig(),
        GumbelConfig(),
        SigmoidConfig(),
        TopKConfig(rate=0.3),
        BudgetConfig(rate=0.3),
    ],
    ids=lambda policy: policy.kind,
)
def test_kept_bytes_of_a_learned_policy(policy: PolicyConfig) -> None:
    """A pool of many on a narrow stream: the policy's part is more than the tolerance."""
    config = replace(sma(layers=1, width=4), pool=(SwiGLUConfig(hidden_width=1),) * 12)
    model, inputs = build_model(replace(config, policy=policy)), random_inputs()
    torch.manual_seed(1)
    active = model(inputs).decisions[0].active.float()
    rates = [active.mean((0, 1)).tolist()]
    torch.manual_seed(1)  # the same noise
    measured = kept_bytes(model, inputs, torch.float32)
    found = model_costs(model.config, rates, batch=BATCH, steps=STEPS)
    assert_near(found.kept_bytes, measured, "kept_bytes")
    policy_part = next(part for part in found.parts if part.name == "policy")
    assert policy_part.kept_bytes > TOLERANCES["kept_bytes"].relative * measured


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("pool", POOLS)
def test_a_pass_holds_at_most_the_peak(pool: str, rate: float, dtype: str) -> None:
    config = sma(pool, rate)
    measured = peak_bytes(build_model(config).eval(), random_inputs(), DTYPES[dtype])
    assert_near(costs(config, rate, DTYPES[dtype]).peak_bytes, measured, "peak_bytes")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("pool", ["attention", "all"])
def test_the_allocator_gives_out_what_is_listed(pool: str, rate: float, dtype: str) -> None:
    config = sma(pool, rate)
    model, inputs, found = build_model(config), random_inputs(), costs(config, rate, DTYPES[dtype])
    most, _ = allocated_bytes(model.eval(), inputs, DTYPES[dtype], training=False)
    assert_near(found.peak_bytes, most, "peak_bytes")
    _, held = allocated_bytes(model.train(), inputs, DTYPES[dtype], training=True)
    assert_near(found.kept_bytes, held, "kept_bytes")


@pytest.mark.parametrize("policy", [TemperedSoftmaxConfig(), BudgetConfig(rate=0.3)])
@pytest.mark.parametrize("dispatch", ["packed", "padded", "capacity"])
def test_policies_that_learn_in_every_layout(policy: PolicyConfig, dispatch: str) -> None:
    config = replace(sma("swiglu", layers=4, dispatch=dispatch), policy=policy)
    model, inputs = build_model(config), random_inputs()
    rates = [d.active.float().mean((0, 1)).tolist() for d in model(inputs).decisions]
    found = model_costs(config, rates, batch=BATCH, steps=STEPS)
    assert_near(found.kept_bytes, kept_bytes(model, inputs, torch.float32), "kept_bytes")
    assert_near(found.peak_bytes, peak_bytes(model, inputs, torch.float32), "peak_bytes")


@pytest.mark.parametrize("config", [sma(ema="fft"), sma(bidirectional=True), TRANSFORMER])
def test_peaks_of_other_models(config: ArchitectureConfig) -> None:
    measured = peak_bytes(build_model(config).eval(), random_inputs(), torch.float32)
    assert_near(costs(config, 0.5, torch.float32).peak_bytes, measured, "peak_bytes")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("config", [*map(sma, POOLS), TRANSFORMER], ids=[*POOLS, "transformer"])
def test_an_eager_pass_moves_no_less(config: ArchitectureConfig, rate: float, dtype: str) -> None:
    if isinstance(config, ModelConfig):
        config = replace(config, layers=1, policy=RATES[rate])
    found = costs(config, rate, DTYPES[dtype])
    share = 1 - TOLERANCES["eager_bytes"].relative
    for training, least in ((False, found.forward_bytes), (True, found.training_bytes)):
        moved = moved_bytes(build_model(config), random_inputs(), DTYPES[dtype], training=training)
        assert share * moved.total() <= least <= moved.total()


@pytest.mark.parametrize("pool", ["swiglu", "attention", "full attention", "convolution"])
def test_linear_maps_move_exactly_what_is_listed(pool: str) -> None:
    """A product with a bias is one operation in PyTorch, too: there the least is what is moved."""
    config = sma(pool)
    moved = moved_bytes(build_model(config), random_inputs(), torch.float32, training=True)
    rows = BATCH * STEPS
    # Numeric channels have no gradient.
    forward = 4 * (rows * (6 + 32) + (6 + 1) * 32)
    backward = 4 * (rows * (6 + 32) + 6 * 32)
    for part in model_parts(config, [[0.5]] * 2, Extent(rows=rows, sequences=BATCH)):
        for operation in part.operations:
            if operation.name not in ("project", "output", "predict"):
                continue
            # The product of two factors is written before it is read; the list reads both.
            gated = operation.name == "output" and part.name in ("swiglu", "gated_attention")
            more = operation.read / 2 if gated else 0
            forward += operation.forward - more
            # Two products read the gradient of the output, and neither that of the bias.
            active = rows * part.activation
            bias = 2 * operation.written / active
            backward += operation.backward - 2 * more + operation.written - bias
    assert moved["addmm"] == forward
    assert moved["mm"] == backward


def test_norms_move_exactly_what_is_listed() -> None:
    config = sma(layers=1)
    moved = moved_bytes(build_model(config), random_inputs(), torch.float32, training=False)
    parts = model_parts(config, [[0.5]], Extent(rows=BATCH * STEPS, sequences=BATCH))
    norms = [op for part in parts for op in part.operations if op.name == "norm"]
    statistics = 2 * BATCH * STEPS * 4  # mean and deviation of each step
    assert sum(op.forward + statistics for op in norms) == moved["native_layer_norm"]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([sma("all"), sma("all", dispatch="padded", bidirectional=True)]),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=14, max_size=14),
    st.integers(1, 400),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_cost_grows_with_activation(
    config: ModelConfig, pairs: list[tuple[float, float]], steps: int, dtype: torch.dtype
) -> None:
    low, high = (
        model_costs(
            config,
            [[choose(pair) for pair in half] for half in (pairs[:7], pairs[7:])],
            batch=2,
            steps=steps,
            dtype=dtype,
        )
        for choose in (min, max)
    )
    for cost in ("flops", "forward_bytes", "training_bytes", "kept_bytes", "peak_bytes"):
        assert getattr(low, cost) <= getattr(high, cost) * (1 + 1e-12)


def test_fixed_capacity_costs_its_slots_at_any_activation() -> None:
    config = sma(dispatch="capacity", capacity=0.25)
    none, all_on, packed = (
        costs(c, r, torch.float32) for c, r in ((config, 0.0), (config, 1.0), (sma(), 0.25))
    )
    assert none.kept_bytes == all_on.kept_bytes
    assert none.forward_bytes == all_on.forward_bytes == pytest.approx(packed.forward_bytes)


def test_a_kernel_that_keeps_no_weights_keeps_less_and_moves_the_same() -> None:
    config, rates = sma(rate=1.0), [[1.0]] * 2
    plain = model_costs(config, rates, steps=STEPS)
    fused = model_costs(config, rates, steps=STEPS, fused_attention=True)
    assert fused.kept_bytes < plain.kept_bytes
    assert fused.training_bytes == plain.training_bytes
    biased = sma("local", rate=1.0)  # no such kernel adds a learned bias
    assert model_costs(biased, rates, fused_attention=True) == model_costs(biased, rates)


def test_the_table_holds_the_other_counts() -> None:
    config, rates = sma("all"), [[0.1 * i for i in range(7)]] * 2
    found = model_costs(config, rates, batch=3, steps=50)
    assert found.flops == pytest.approx(step_flops(config, rates) * 150)
    assert found.state_bytes == state_bytes(config)
    transformer = model_costs(TRANSFORMER, batch=3, steps=50)
    assert transformer.flops == pytest.approx(step_flops(TRANSFORMER) * 150)


def test_the_table_shows_a_row_for_each_part_and_its_share() -> None:
    found = model_costs(sma("swiglu", layers=1, bidirectional=True), [[0.25]], batch=2, steps=100)
    head, columns, *rows, total, last = str(found).splitlines()
    assert head == "2 x 100 steps, float32"
    assert columns.split("  ")[-1].strip() == "bytes kept"
    assert [row[:16].split() for row in rows] == [
        ["embedding"],
        ["0", "every", "step"],
        ["0", "policy"],
        ["0", "swiglu"],
        ["head"],
    ]
    assert " 25% " in rows[3]
    shares = [[int(word[:-1]) for word in row.split() if word.endswith("%")][1:] for row in rows]
    for column in zip(*shares, strict=True):
        assert sum(column) == pytest.approx(100, abs=3)
    assert total.split()[0] == "all"
    assert last.endswith("no stream")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch: must be at least 1, not 0"),
        ({"steps": 0}, "steps: must be at least 1, not 0"),
        ({"dtype": torch.float16}, "dtype: must be torch.float32 or torch.bfloat16"),
        ({"activation": [[1.5]] * 2}, "activation: rates lie in 0..1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {"activation": [[0.5]] * 2}
    with pytest.raises(ConfigError, match=message):
        model_costs(sma(), **(fitting | arguments))


def test_an_unknown_sub_module_is_asked_for_its_operations() -> None:
    @dataclass(frozen=True, kw_only=True)
    class DoubleConfig(SubModuleConfig):
        kind: ClassVar[str] = "test_double"

    try:
        submodule_flops.register(DoubleConfig, lambda config, width, causal: 0)
        config, rates = replace(sma(layers=1), pool=(DoubleConfig(),)), [[0.5]]
        with pytest.raises(ConfigError, match="no list of operations for sub-module 'test_double'"):
            model_costs(config, rates)

        @submodule_operations.register
        def _(config: DoubleConfig, width: int, causal: bool, extent: Extent) -> list[Operation]:
            return [linear("double", extent, width, width, kept=width)]

        part = model_costs(config, rates, steps=100).parts[3]
        assert part.name == "test_double"
        # Rows and their index, what it keeps, and what is weighed: rows and confidence.
        assert part.kept_bytes == 50 * (32 * 4 + 8 + 32 * 4 + 32 * 4 + 4)
    finally:
        del SubModuleConfig.members["test_double"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_allocator_of_a_device_holds_what_is_listed(dtype: str) -> None:
    """Long sequences: there a chunk of the EMA is longer than on the CPU."""
    config = replace(sma("attention"), width=64, pool=(ATTENTION, SwiGLUConfig(hidden_width=128)))
    model, inputs = build_model(config).cuda(), random_inputs(8, 16_384).to("cuda")
    found = model_costs(
        config,
        [[0.5, 0.5]] * 2,
        batch=8,
        steps=16_384,
        dtype=DTYPES[dtype],
        fused_attention=dtype == "bfloat16",
    )
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
        model(inputs)  # takes room for cuBLAS
        before = torch.cuda.memory_allocated()
        outputs = model(inputs)
        kept = torch.cuda.memory_allocated() - before
        del outputs
        assert_near(found.kept_bytes, kept, "peak_bytes")
        with torch.no_grad():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            model(inputs)
            peak = torch.cuda.max_memory_allocated() - before
        assert_near(found.peak_bytes, peak, "peak_bytes")
