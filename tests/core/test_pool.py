"""Every member of the pool, in every combination, equals its equations; and a user's own joins."""

import itertools
from dataclasses import replace

import pytest
import torch
from tests.core.models import POOL, piece, random_inputs, small_blocks, small_config, small_model
from tests.core.parity import LENGTHS, against_fast, against_reference, run_chunks, run_steps
from tests.tolerances import TOLERANCES, assert_close

from sma_core import (
    ActiveEMAConfig,
    AlwaysConfig,
    ConfigError,
    FullAttentionConfig,
    GatedAttentionConfig,
    LocalConvolutionConfig,
    ModelConfig,
    NeverConfig,
    SubModuleConfig,
    SwiGLUConfig,
    config_from_dict,
    config_to_dict,
)
from sma_core.costs import state_bytes, submodule_flops
from sma_core.dispatch import PackedDispatch
from sma_core.reference import reference_forward
from sma_core.submodules import build_submodule

LIMIT = TOLERANCES["float64"].relative
# With windows shorter and longer than the sequences.
MEMBERS: dict[str, SubModuleConfig] = {
    "softmax attention": POOL[0],
    "relu2 attention": POOL[2],
    "swiglu": SwiGLUConfig(hidden_width=5),
    "convolution of 1": LocalConvolutionConfig(kernel_size=1),
    "convolution of 3": LocalConvolutionConfig(kernel_size=3),
    "convolution of 20": LocalConvolutionConfig(kernel_size=20),
    "full attention, 1 row": FullAttentionConfig(heads=1, head_width=4, max_rows=1),
    "full attention, 4 rows": FullAttentionConfig(heads=2, head_width=4, max_rows=4),
    "full attention": FullAttentionConfig(heads=3, head_width=2, max_rows=50),
    "ema": ActiveEMAConfig(states=3),
}
EVERY = pytest.mark.parametrize("name", MEMBERS)
BOTH_DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True])
# Three members of one kind or of three, as different as their windows make them.
POOLS = {
    "three kinds": (POOL[0], LocalConvolutionConfig(kernel_size=3), ActiveEMAConfig(states=2)),
    "three windows": tuple(
        GatedAttentionConfig(query_width=4, value_width=6, window=window) for window in (1, 3, 40)
    ),
    "the rest": (
        POOL[2],
        SwiGLUConfig(hidden_width=5),
        FullAttentionConfig(heads=2, head_width=4, max_rows=3),
    ),
}


def config(*pool: SubModuleConfig, **fields) -> ModelConfig:
    return replace(small_config(**fields), pool=pool)


@EVERY
@BOTH_DIRECTIONS
@pytest.mark.parametrize("dispatch", ["packed", "padded", "capacity"])
def test_the_equations(name: str, bidirectional: bool, dispatch: str) -> None:
    own = config(MEMBERS[name], bidirectional=bidirectional, dispatch=dispatch)
    for lengths in (LENGTHS, [1, 14, 0]):
        parity = against_reference(own, torch.float64, lengths)
        assert parity.output <= LIMIT
        assert parity.gradient <= LIMIT


@EVERY
@pytest.mark.parametrize("dispatch", ["packed", "padded", "capacity"])
@pytest.mark.parametrize("way", [run_chunks, run_steps])
def test_streams_and_chunks(name: str, dispatch: str, way) -> None:
    """With chunks shorter and longer than what a member keeps."""
    assert against_fast(config(MEMBERS[name], dispatch=dispatch), way, torch.float64) <= LIMIT


@EVERY
def test_a_state_of_constant_size_that_travels(name: str) -> None:
    own = config(MEMBERS[name])
    model, inputs = small_model(own), replace(random_inputs(own, [14, 14]), lengths=None)
    state = model.init_state(2)
    before = state.nbytes
    assert state_bytes(own, torch.float64) * 2 == before
    model(piece(inputs, 0, 8), state)
    assert state.nbytes == before
    swapped = state.select(torch.tensor([1, 0]))
    late = piece(inputs.map(lambda tensor: tensor.flip(0)), 8, 14)
    expected = model(inputs).prediction[:, 8:].flip(0)
    assert_close(model(late, swapped).prediction, expected, "float64")


@pytest.mark.parametrize("name", POOLS)
@BOTH_DIRECTIONS
def test_every_subset_is_reached_and_equals_the_equations(name: str, bidirectional: bool) -> None:
    """All 2^3 combinations, each at some step of one learned router's doing."""
    pool = POOLS[name]
    own = config(*pool, bidirectional=bidirectional, layers=1)
    model = small_model(own)
    inputs = random_inputs(own, [60, 25], seed=10)
    (decision,) = model(inputs).decisions
    ran = {tuple(step) for step in decision.active[inputs.valid].tolist()}
    assert ran == set(itertools.product((False, True), repeat=len(pool)))
    reference = reference_forward(model, inputs)
    for b, length in enumerate((60, 25)):
        assert decision.active[b, :length].equal(reference.active[b][0])
        with small_blocks(), torch.no_grad():
            ours = model(inputs).prediction[b, :length]
        assert_close(ours, reference.prediction[b], "float64")


@pytest.mark.parametrize("subset", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_each_subset_alone(name: str, subset: tuple[bool, ...]) -> None:
    """A router that always runs exactly this subset: outputs and every gradient."""
    own = config(*POOLS[name], layers=1)
    model, inputs = small_model(own), random_inputs(own, [9, 4])
    with torch.no_grad():
        for m, runs in enumerate(subset):
            model.layers[0].project.bias[2 * m + 1] = 50.0 if runs else -50.0  # type: ignore
    (decision,) = model(inputs).decisions
    assert decision.active[inputs.valid].equal(torch.tensor(subset).expand(13, -1))
    with small_blocks():
        prediction = model(inputs).prediction
    slow = reference_forward(model, inputs).prediction
    weights = list(model.parameters())
    fast_flat = torch.cat([prediction[0], prediction[1, :4]])
    slow_flat = torch.cat(slow)
    assert_close(fast_flat, slow_flat, "float64")
    ours, expected = (
        torch.autograd.grad(flat.square().sum(), weights, allow_unused=True, materialize_grads=True)
        for flat in (fast_flat, slow_flat)
    )
    joined = [torch.cat([g.flatten() for g in each]) for each in (ours, expected)]
    assert_close(joined[0], joined[1], "float64")


def test_windows_tell_members_of_one_kind_apart() -> None:
    """The same weights and rows, other windows: other numbers where a window ends."""
    outs = []
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    active = torch.ones(1, 9, 1, dtype=torch.bool)
    (dispatch,) = PackedDispatch.plan(active, torch.arange(9).unsqueeze(0))
    for rows in (2, 4):
        torch.manual_seed(0)
        unit = build_submodule(
            FullAttentionConfig(heads=1, head_width=4, max_rows=rows), width=8, causal=True
        )
        torch.nn.init.normal_(unit.project.weight)  # type: ignore[arg-type]
        outs.append(unit(x, dispatch.rows))
    assert_close(outs[0][:2], outs[1][:2], "float32")
    assert not torch.allclose(outs[0][2:], outs[1][2:])


@EVERY
@pytest.mark.parametrize("dispatch", ["packed", "padded", "capacity"])
@BOTH_DIRECTIONS
def test_no_active_row(name: str, dispatch: str, bidirectional: bool) -> None:
    """Weights stay in the graph with a gradient of zero, also beside a state."""
    own = config(
        MEMBERS[name], policy=NeverConfig(), dispatch=dispatch, bidirectional=bidirectional
    )
    model, inputs = small_model(own), random_inputs(own, [6, 3])
    states = [None] if bidirectional else [None, model.init_state(2)]
    for state in states:
        model.zero_grad()
        model(inputs, state).prediction.sum().backward()
        for weight_name, weight in model.named_parameters():
            assert weight.grad is not None, weight_name
            assert weight.grad.isfinite().all(), weight_name
            assert weight.grad.any() == (".pool." not in weight_name), weight_name


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_numbers(name: str, dtype: torch.dtype) -> None:
    own = config(MEMBERS[name], policy=AlwaysConfig(), layers=1)
    row = str(dtype).removeprefix("torch.")
    inputs = random_inputs(own, [14, 14], dtype=torch.float32)
    narrow = small_model(own, dtype=dtype)
    expected = small_model(own, dtype=torch.float32)
    inputs = replace(inputs, lengths=None)
    with torch.no_grad():
        out = narrow(replace(inputs, numeric=inputs.numeric.to(dtype))).prediction  # type: ignore[union-attr]
        assert_close(out.float(), expected(inputs).prediction, row)
        state = narrow.init_state(2)
        first = piece(replace(inputs, numeric=inputs.numeric.to(dtype)), 0, 1)  # type: ignore[union-attr]
        assert_close(narrow.step(first, state).prediction, out[:, :1], row)


@EVERY
def test_plain_form_and_count(name: str) -> None:
    own = config(MEMBERS[name])
    assert config_from_dict(config_to_dict(own)) == own
    assert submodule_flops(own.pool[0], 8, True) > 0


def test_counts_of_operations() -> None:
    """D = 8: products of weights twice, then what a member does beside them."""
    convolution = LocalConvolutionConfig(kernel_size=3)
    assert submodule_flops(convolution, 8, True) == 2 * 8 * 8 + 2 * 3 * 8
    assert submodule_flops(convolution, 8, False) == 2 * 8 * 8 + 2 * 5 * 8
    attention = FullAttentionConfig(heads=2, head_width=4, max_rows=10)
    assert submodule_flops(attention, 8, True) == 2 * 4 * 8 * 8 + 2 * 2 * 10 * 8
    ema = ActiveEMAConfig(states=3)
    assert submodule_flops(ema, 8, True) == 8 * (5 * 3 + 2) + 2 * 8 * 8


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        (
            LocalConvolutionConfig,
            "kernel_size",
            0,
            "^kernel_size: must be an integer of at least 1",
        ),
        (FullAttentionConfig, "max_rows", 0, "^max_rows: must be an integer of at least 1"),
        (FullAttentionConfig, "heads", True, "^heads: must be an integer of at least 1"),
        (FullAttentionConfig, "head_width", 3, "^head_width: rotary needs an even width, not 3"),
        (ActiveEMAConfig, "states", 1.5, "^states: must be an integer of at least 1, not 1.5"),
    ],
)
def test_what_is_out_of_range_is_named(kind, field: str, value, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**{field: value})
