"""Exported graphs equal the model for any batch, length and activation, and refuse to lie.

Tracing and translating take seconds for each graph, so few are made: between them they hold every
kind of sub-module and head. What AOTInductor compiles takes minutes, and runs where SMA_SLOW=1 is
set.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from experiments.onnx_stepper import OnnxStepper
from tests.core.models import POOL, random_inputs, small_config, small_model
from tests.core.shapes import unchecked_shapes
from tests.slow import slow
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor

from sma_core import (
    ActiveEMAConfig,
    AlwaysConfig,
    BudgetConfig,
    ConfigError,
    ExportError,
    FullAttentionConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    LocalConvolutionConfig,
    ModelConfig,
    RandomConfig,
    SigmoidConfig,
    SMAModel,
    StreamingError,
    TopKConfig,
    TransformerConfig,
    build_model,
)
from sma_core.ema import _scan, _scan_exported
from sma_core.export import export_onnx, export_package
from sma_core.export.graphs import _Step
from sma_core.export.onnx_file import onnx_runner
from sma_core.tracing import is_exporting

ROOT = Path(__file__).parents[2]
_STEP = _Step.forward
MAIN = small_config(layers=1)
MAIN = replace(MAIN, pool=(*POOL[:2], LocalConvolutionConfig(kernel_size=3)))
ROWWISE = small_config(layers=1, inputs=InputConfig(numeric=2))
ROWWISE = replace(ROWWISE, pool=(POOL[1],))
OTHERS = {
    "top-k, full attention, one class a sequence": replace(
        small_config(layers=1, head=HeadConfig(kind="sequence_classification", outputs=3)),
        pool=(FullAttentionConfig(heads=2, head_width=4, max_rows=8), POOL[2]),
        policy=TopKConfig(rate=0.4),
    ),
    "EMA over active rows": replace(
        small_config(layers=1), pool=(ActiveEMAConfig(states=2),), policy=SigmoidConfig()
    ),
    "bidirectional, batch norm": replace(
        small_config(layers=1, attention={"position": "simple"}, bidirectional=True, norm="batch"),
        prenorm=False,
        dispatch="padded",
    ),
}
SIZES = [[1], [5, 2, 5], [64], [130, 100], [700]]


@pytest.fixture(scope="module", autouse=True)
def nothing_compared_in_a_trace() -> Iterator[None]:
    """Shape checks compare sizes, which a trace takes for facts about all inputs."""
    with unchecked_shapes():
        yield


@dataclass
class Exported:
    model: SMAModel
    path: Path
    manifest: dict[str, Any]


def export(folder: Path, config: ModelConfig, graph: Any) -> Exported:
    model = small_model(config, dtype=torch.float32)
    path = folder / f"{graph}.onnx"
    return Exported(model, path, export_onnx(model, path, graph=graph))


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("parallel"), MAIN, "parallel")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("step"), MAIN, "step")


def check_parallel(model: SMAModel, path: Path, lengths: list[int]) -> Tensor:
    """Compare valid steps, and return which of them ran what."""
    inputs = random_inputs(model.config, lengths, seed=len(lengths), dtype=torch.float32)
    tensors = [t for t in (inputs.numeric, inputs.categorical, inputs.lengths) if t is not None]
    (ours,) = onnx_runner(path)(tuple(tensors))
    with torch.no_grad():
        eager = model(inputs)
    inside = slice(None) if ours.dim() == 2 else inputs.valid
    assert_close(ours[inside], eager.prediction[inside], "float32")
    return eager.decisions[0].active[inputs.valid]


def stream(stepper: OnnxStepper, inputs: Inputs) -> Tensor:
    """Predictions of every step, one at a time."""
    stepper.reset(inputs.batch)
    arrays = {
        name: tensor.numpy()
        for name in ("numeric", "categorical")
        if (tensor := getattr(inputs, name)) is not None
    }
    steps = [
        stepper.step(**{name: array[:, t] for name, array in arrays.items()})
        for t in range(inputs.steps)
    ]
    return torch.from_numpy(np.stack(steps, axis=1))


def biased(exported: Exported, folder: Path, bias: float) -> tuple[SMAModel, Path]:
    """The same graph and model with another router bias: one graph serves every activation."""
    model = small_model(exported.model.config, dtype=torch.float32)
    graph = onnx.load(exported.path)
    (stored,) = [w for w in graph.graph.initializer if w.name.endswith("layers.0.project.bias")]
    with torch.no_grad():
        model.layers[0].project.bias[1 : 2 * len(model.config.pool) : 2] += bias  # type: ignore
        weights = model.layers[0].project.bias.numpy()  # type: ignore
    stored.CopyFrom(onnx.numpy_helper.from_array(weights, stored.name))
    path = folder / "biased.onnx"
    onnx.save(graph, path)
    return model, path


@pytest.mark.parametrize("lengths", SIZES, ids=str)
def test_parallel(parallel: Exported, lengths: list[int]) -> None:
    check_parallel(parallel.model, parallel.path, lengths)


@slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_configurations(name: str, tmp_path: Path) -> None:
    exported = export(tmp_path, OTHERS[name], "parallel")
    for lengths in SIZES:
        check_parallel(exported.model, exported.path, lengths)


@pytest.mark.parametrize(("bias", "runs"), [(-100.0, 0.0), (100.0, 1.0)])
def test_none_and_all_active(parallel: Exported, tmp_path: Path, bias: float, runs: float) -> None:
    model, path = biased(parallel, tmp_path, bias)
    active = check_parallel(model, path, [70, 66])
    assert active.float().mean() == runs


@pytest.mark.parametrize("chunks", [1, 2, 7, 20])
def test_states_reach_across_chunks(chunks: int) -> None:
    """Directly, as drawn decays have faded after one chunk."""
    gained = torch.randn(2, 3, chunks, 4, dtype=torch.float64)
    log_decay = -0.1 * torch.rand(2, 4, dtype=torch.float64)
    assert_close(_scan_exported(gained, log_decay), _scan(gained, log_decay), "float64")


@pytest.mark.parametrize("batch", [1, 3])
def test_fifty_steps_equal_one_pass(step: Exported, batch: int) -> None:
    inputs = random_inputs(step.model.config, [50] * batch, dtype=torch.float32)
    with torch.no_grad():
        eager = step.model(inputs)
    active = eager.decisions[0].active
    assert active.any()
    assert not active.all()
    assert_close(stream(OnnxStepper(step.path), inputs), eager.prediction, "float32")


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_steps_where_none_or_all_run(step: Exported, tmp_path: Path, bias: float) -> None:
    model, path = biased(step, tmp_path, bias)
    inputs = random_inputs(model.config, [12, 12], dtype=torch.float32)
    stepper = OnnxStepper(step.path)
    stepper._session = OnnxStepperSession(path)
    with torch.no_grad():
        assert_close(stream(stepper, inputs), model(inputs).prediction, "float32")


class OnnxStepperSession:
    """A changed file in place of the one that the manifest's hash belongs to."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path))

    def run(self, outputs: None, feed: dict[str, np.ndarray]) -> Any:
        return self._session.run(outputs, feed)


@pytest.mark.parametrize(
    "policy",
    [
        BudgetConfig(rate=0.4, block=2, window=4),
        pytest.param(RandomConfig(rate=0.4), marks=slow),
    ],
    ids=str,
)
def test_policies_with_a_clock_step(policy: Any, tmp_path: Path) -> None:
    exported = export(tmp_path, replace(ROWWISE, policy=policy), "step")
    inputs = random_inputs(exported.model.config, [30, 30], dtype=torch.float32)
    with torch.no_grad():
        expected = exported.model(inputs).prediction
    assert_close(stream(OnnxStepper(exported.path), inputs), expected, "float32")


def test_manifest(step: Exported) -> None:
    manifest = json.loads(step.path.with_name("step.onnx.json").read_text())
    assert manifest == json.loads(json.dumps(step.manifest))
    assert manifest["verification"]["relative_difference"] < TOLERANCES["float32"].relative
    state = step.model.init_state(1)
    assert manifest["initial_state"] == {
        f"state.{name}": tensor.flatten()[0].item() for name, tensor in state.named_tensors()
    }
    listed = [slot["name"].replace("next.", "state.") for slot in manifest["outputs"][1:]]
    assert listed == list(manifest["initial_state"])
    assert str(ROOT) not in step.path.read_bytes().decode("latin-1")


def test_a_device_needs_no_torch(step: Exported) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['sma_core'] = None\n"
        "from experiments.onnx_stepper import OnnxStepper; import numpy as np\n"
        f"stepper = OnnxStepper({str(step.path)!r}); stepper.reset(2)\n"
        "print(stepper.step(np.zeros((2, 2)), np.zeros((2, 1))).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "(2, 3)\n", done.stderr


def test_a_changed_file_is_no_step(step: Exported, tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    path.write_bytes(step.path.read_bytes() + b"\0")
    manifest = step.path.with_name("step.onnx.json").read_text()
    path.with_name("step.onnx.json").write_text(manifest)
    with pytest.raises(ValueError, match="not the file"):
        OnnxStepper(path)


@pytest.mark.parametrize("graph", [pytest.param("parallel", marks=slow), "step"])
def test_torch_package(graph: Any, tmp_path: Path) -> None:
    model = small_model(ROWWISE, dtype=torch.float32)
    path = tmp_path / "model.pt2"
    manifest = export_package(model, path, graph=graph, compiled=False)
    assert manifest["runtime"] == "torch.export"
    run = torch.export.load(path).module()
    inputs = random_inputs(ROWWISE, [90, 40] if graph == "parallel" else [1], dtype=torch.float32)
    rest = [inputs.lengths] if graph == "parallel" else model.init_state(1).tensors()
    with torch.no_grad():
        expected = model(inputs).prediction
        ours = run(inputs.numeric, *rest)[0]
    assert_close(ours[inputs.valid], expected[inputs.valid], "float32")
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt2", "model.pt2.json"}


@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="there is no C++ compiler")
@slow
@pytest.mark.parametrize("graph", ["step", "parallel"])
def test_compiled_package(graph: Any, tmp_path: Path) -> None:
    model = small_model(ROWWISE, dtype=torch.float32)
    path = tmp_path / "model.pt2"
    manifest = export_package(model, path, graph=graph)
    assert manifest["runtime"] == "aotinductor"
    run = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    inputs = random_inputs(ROWWISE, [90, 40] if graph == "parallel" else [1], dtype=torch.float32)
    rest = [inputs.lengths] if graph == "parallel" else model.init_state(1).tensors()
    with torch.no_grad():
        expected = model(inputs).prediction
        ours = run(inputs.numeric, *rest)[0]
    assert_close(ours[inputs.valid], expected[inputs.valid], "float32")


def test_the_model_stays_as_it_was() -> None:
    """Exporting copies: dtype, mode, numbers and random numbers are the caller's still."""
    from sma_core.export.graphs import build_graph

    model = small_model(ROWWISE).train()
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    built = build_graph(model, "step")
    built.capture()
    assert model.training
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert torch.get_rng_state().equal(drawn)
    # Nor does anything of the trace stay in the copy: it steps still.
    assert built.module(*built.example(1, 1, seed=0))[0].isfinite().all()


def test_a_difference_is_refused(tmp_path: Path) -> None:
    """A wrong graph leaves nothing, and what was there before stays."""
    model, path = small_model(ROWWISE, dtype=torch.float32), tmp_path / "model.pt2"
    path.write_text("an earlier one")
    with (
        patch("sma_core.export.graphs._Step.forward", wrong_forward),
        pytest.raises(ExportError, match=r"differs from the model .* nothing was written"),
    ):
        export_package(model, path, graph="step", compiled=False)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "an earlier one"


def wrong_forward(self: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Off by a little under trace, right in eager."""
    prediction, *state = _STEP(self, *tensors)
    return (prediction * (1.001 if is_exporting() else 1.0), *state)


@pytest.mark.parametrize(
    ("change", "graph", "error", "field"),
    [
        ({"bidirectional": True}, "step", StreamingError, "bidirectional"),
        ({"policy": TopKConfig(rate=0.4, evaluation="top_k")}, "step", ConfigError, "evaluation"),
        ({"policy": BudgetConfig(rate=0.4)}, "parallel", ConfigError, "policy: budget"),
        ({"policy": TopKConfig(rate=0.4, evaluation="top_k")}, "parallel", ConfigError, "evalu"),
        ({"dispatch": "capacity"}, "parallel", ConfigError, "dispatch: capacity"),
        ({}, "both", ConfigError, "graph"),
    ],
    ids=str,
)
def test_what_no_graph_expresses(
    change: dict[str, Any], graph: Any, error: type[Exception], field: str, tmp_path: Path
) -> None:
    model = build_model(replace(ROWWISE, **change))
    with pytest.raises(error, match=field):
        export_onnx(model, tmp_path / "model.onnx", graph=graph)
    assert not list(tmp_path.iterdir())


def test_other_architectures_and_endings(tmp_path: Path) -> None:
    twin = build_model(TransformerConfig(inputs=ROWWISE.inputs, head=ROWWISE.head, width=8))
    with pytest.raises(ConfigError, match="architecture"):
        export_onnx(twin, tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="path"):
        export_package(build_model(ROWWISE), tmp_path / "model.zip")


def test_missing_tools(tmp_path: Path) -> None:
    model = build_model(replace(ROWWISE, policy=AlwaysConfig()))
    with (
        patch("sma_core.export.onnx_file.find_spec", return_value=None),
        pytest.raises(ExportError, match=r"pip install 'sma-core\[export\]'"),
    ):
        export_onnx(model, tmp_path / "model.onnx")
    with (
        patch("sma_core.export.package.shutil.which", return_value=None),
        pytest.raises(ExportError, match=r"C\+\+ compiler"),
    ):
        export_package(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
