"""On a CUDA device the model gives what it gives on the CPU: passes, gradients, streams, fits."""

import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.core.determinism import DETERMINISTIC, assert_repeats
from tests.core.models import piece, random_inputs, small_config, small_model
from tests.core.tasks import SHORT, sine_dataset, small_sma
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import AlwaysConfig, Fleet, Inputs, ModelConfig, SMAModel, fit
from sma_core.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

LENGTHS = [300, 170, 1]
CONFIGS = {
    "rotary": small_config(pool=3),
    "simple": small_config(pool=2, attention={"position": "simple"}),
    "relu2, local": small_config(pool=3, attention={"score": "relu2", "position": "local"}),
    "padded": small_config(pool=3, dispatch="padded"),
    "fft": small_config(pool=2, ema="fft"),
    "bidirectional": small_config(pool=3, bidirectional=True),
}


def outputs_and_gradients(
    config: ModelConfig, device: str, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    model = small_model(config, dtype=dtype).to(device)
    prediction = model(random_inputs(config, LENGTHS, dtype=dtype).to(device)).prediction
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1))
    (prediction * weights.to(prediction)).sum().backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    return prediction.detach(), gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_those_of_the_cpu(name: str) -> None:
    here, gradients = outputs_and_gradients(CONFIGS[name], "cuda", torch.float64)
    there, expected = outputs_and_gradients(CONFIGS[name], "cpu", torch.float64)
    assert_close(here, there, "float64")
    assert gradients.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for weight, gradient in gradients.items():
        if expected[weight].norm() > 1e-6 * largest:
            assert_close(gradient, expected[weight], "float64")


def test_a_stream_on_the_device_equals_one_pass() -> None:
    config = CONFIGS["rotary"]
    model = small_model(config, dtype=torch.float64).cuda()
    inputs = replace(random_inputs(config, [40, 40]), lengths=None).to("cuda")
    state = model.init_state(2)
    assert state.position.is_cuda
    steps = [model.step(piece(inputs, t, t + 1), state).prediction for t in range(inputs.steps)]
    with torch.no_grad():
        assert_close(torch.cat(steps, 1), model(inputs).prediction, "float64")


def test_autocast_gives_numbers() -> None:
    model = small_model(CONFIGS["rotary"], dtype=torch.float32).cuda()
    inputs = random_inputs(CONFIGS["rotary"], LENGTHS, dtype=torch.float32).to("cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        prediction = model(inputs).prediction
    assert prediction.isfinite().all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_runs_repeat_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation lacks a deterministic version, and none that has one is left out."""
    # cuBLAS reads this before the first product of a process at the latest.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        assert_repeats(DETERMINISTIC[name], "cuda")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_fleet_moves_between_devices(tmp_path: Path) -> None:
    config = CONFIGS["rotary"]
    here, there = small_model(config), small_model(config).cuda()
    inputs = replace(random_inputs(config, [9, 9]), lengths=None)
    fleet = Fleet(there)
    fleet.admit(["a", "b"])
    for t in range(5):
        fleet.step(piece(inputs, t, t + 1).to("cuda"))
    fleet.save(tmp_path / "fleet")
    fleet = Fleet.load(tmp_path / "fleet", here)
    rest = [fleet.step(piece(inputs, t, t + 1)).prediction for t in range(5, 9)]
    with torch.no_grad():
        assert_close(torch.cat(rest, 1), here(inputs).prediction[:, 5:], "float64")


def test_training_on_the_device_leaves_a_checkpoint_for_the_cpu(tmp_path: Path) -> None:
    config = small_sma()
    dataset = sine_dataset(tmp_path / "data")
    result = fit(config, dataset, SHORT, tmp_path / "model", device="cuda")
    model = load_checkpoint(result.checkpoint).model
    assert isinstance(model, SMAModel)
    assert model.head.weight.device.type == "cpu"
    numeric = torch.randn(1, 8, config.inputs.numeric)
    assert model(Inputs(numeric)).prediction.isfinite().all()


def test_a_training_step_waits_for_the_device_once(tmp_path: Path) -> None:
    config = replace(small_sma(), dispatch="capacity", capacity=1.0)
    training = replace(SHORT, max_steps=8, evaluate_every=8, checkpoint_every=8)
    waits: list[int] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fit(
                config,
                sine_dataset(tmp_path / "data"),
                training,
                tmp_path / "model",
                device="cuda",
                on_progress=lambda _: waits.append(
                    sum("synchronizing" in str(warning.message) for warning in seen)
                ),
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # The first steps move tables to the device, the last one evaluates and saves.
    assert [b - a for a, b in itertools.pairwise(waits[2:-1])] == [1, 1, 1, 1]


def autocast_and_plain(device: str, *, bidirectional: bool) -> tuple[Tensor, Tensor]:
    """Predictions with products in bfloat16, where fused attention runs, and in float32."""
    wide = {"query_width": 8, "value_width": 16, "window": 5}
    config = small_config(attention=wide, bidirectional=bidirectional, policy=AlwaysConfig())
    model = small_model(config, dtype=torch.float32).to(device)
    inputs = random_inputs(config, LENGTHS, dtype=torch.float32).to(device)
    with torch.no_grad():
        plain = model(inputs).prediction
        with torch.autocast(device, torch.bfloat16):
            return model(inputs).prediction, plain


@pytest.mark.parametrize("bidirectional", [False, True])
def test_fused_attention_is_the_plain_one(bidirectional: bool) -> None:
    assert_close(*autocast_and_plain("cuda", bidirectional=bidirectional), "bfloat16")
