"""The step without a read by the host, which CUDA graphs replay, gives what the step gives."""

import gc

import pytest
import torch
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.core.parity import reference_cases
from tests.core.shapes import unchecked_shapes
from tests.tolerances import assert_close

from sma_core import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
    ModelConfig,
    StreamingError,
)
from sma_core.captured import CapturedStep
from sma_core.tracing import as_recording

STEPS = 24
EVERY_KIND = (
    *small_config(pool=3).pool,
    LocalConvolutionConfig(kernel_size=3),
    FullAttentionConfig(heads=2, head_width=4, max_rows=4),
    ActiveEMAConfig(states=2),
)
CONFIGS = {name: config for name, config in reference_cases() if config.causal} | {
    "every kind": ModelConfig(
        inputs=small_config().inputs, head=small_config().head, width=8, pool=EVERY_KIND
    )
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_step(name: str) -> None:
    model = small_model(CONFIGS[name])
    inputs = random_inputs(CONFIGS[name], [STEPS] * 3)
    inputs = type(inputs)(inputs.numeric, inputs.categorical)
    usual, recorded = model.init_state(3), model.init_state(3)
    ran = []
    with unchecked_shapes():
        for t in range(STEPS):
            one = piece(inputs, t, t + 1)
            expected = model.step(one, usual)
            with as_recording():
                got = model.step(one, recorded)
            assert_close(got.prediction, expected.prediction, "float64")
            ran += [d.active.flatten() for d in expected.decisions]
    if CONFIGS[name].policy.kind not in ("always", "never"):
        assert 0 < torch.cat(ran).double().mean() < 1
    # A chunk goes on from it: the rows that were written and taken back are seen by none.
    rest = random_inputs(CONFIGS[name], [5] * 3, seed=1)
    rest = type(rest)(rest.numeric, rest.categorical)
    assert_close(model(rest, recorded).prediction, model(rest, usual).prediction, "float64")


def test_it_asks_for_a_device_that_has_graphs() -> None:
    model = small_model(small_config())
    inputs = random_inputs(small_config(), [1])
    with pytest.raises(StreamingError, match=r"example: a step is captured on a CUDA device"):
        CapturedStep(model, type(inputs)(inputs.numeric, inputs.categorical))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", ["every kind", next(iter(CONFIGS))])
def test_replays_are_steps(name: str) -> None:
    model = small_model(CONFIGS[name]).cuda()
    inputs = random_inputs(CONFIGS[name], [STEPS] * 3)
    inputs = type(inputs)(inputs.numeric, inputs.categorical).to("cuda")
    state = model.init_state(3)
    captured = CapturedStep(model, piece(inputs, 0, 1))
    for t in range(STEPS):
        one = piece(inputs, t, t + 1)
        assert_close(captured(one).prediction, model.step(one, state).prediction, "float64")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_what_a_graph_reads_outlives_what_others_do_with_the_model() -> None:
    """A new state makes the step's coefficients anew; the old ones must not be given away."""
    config = next(iter(CONFIGS.values()))
    inputs = random_inputs(config, [STEPS] * 3)
    inputs = type(inputs)(inputs.numeric, inputs.categorical).to("cuda")
    model = small_model(config).cuda()
    state = model.init_state(3)
    expected = [model.step(piece(inputs, t, t + 1), state).prediction for t in range(STEPS)]
    captured = CapturedStep(model, piece(inputs, 0, 1))
    CapturedStep(model, piece(inputs, 0, 1))
    del model, state
    gc.collect()
    torch.cuda.empty_cache()
    taken = [torch.full((size,), torch.nan, device="cuda") for size in range(1, 2000)]
    for t in range(STEPS):
        got = captured(piece(inputs, t, t + 1)).prediction
        assert_close(got, expected[t], "float64")
    assert len(taken) == 1999
