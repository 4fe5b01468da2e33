"""Compiled training gives the numbers of training, and says where it cannot."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.compiled_fit import assert_alike
from tests.core.parallel_program import BRIEF, SLOTS
from tests.core.tasks import SHORT, small_sma, small_transformer
from tests.slow import slow

from sma_core.config import ArchitectureConfig, GRUConfig, HeadConfig, InputConfig
from sma_core.dataset import PreparedDataset
from sma_core.errors import ConfigError
from sma_core.inputs import Inputs
from sma_core.parallel import Stopped
from sma_core.training import TrainingConfig, check_fit, fit
from sma_core.training_config import Compile

ROOT = Path(__file__).parents[2]


class Recorder:
    """Stands for `torch.compile`: runs what it is given as it is, and notes shapes."""

    def __init__(self) -> None:
        self.functions = 0
        self.options: list[dict[str, Any]] = []
        self.shapes: set[torch.Size] = set()
        self.calls = 0

    def __call__(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        self.functions += 1
        self.options.append(options)

        def run(given: Any, *rest: Any) -> Any:
            self.calls += 1
            tensor = given.numeric if isinstance(given, Inputs) else given
            self.shapes.add(tensor.shape)  # type: ignore[union-attr]
            return function(given, *rest)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch, "compile", recorder)
    return recorder


@pytest.fixture
def wide() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("how", ["layers", "model"])
def test_batches_of_any_shape_come_in_one(
    markers: PreparedDataset, tmp_path: Path, compiler: Recorder, how: Compile
) -> None:
    """Sequences of 5 to 40 rows, parts that do not divide a batch, layers computed twice."""
    plain = replace(SHORT, batch_size=7, max_steps=3, evaluate_every=3, evaluate_batches=1)
    parts = replace(plain, accumulation_steps=3, activation_checkpointing=True, compile=how)
    expected = fit(SLOTS, markers, plain, tmp_path / "plain")
    assert not compiler.functions
    assert_alike(fit(SLOTS, markers, parts, tmp_path / "compiled"), expected, "float64")
    assert compiler.functions == (SLOTS.layers if how == "layers" else 1)
    assert all(o["fullgraph"] and not o["dynamic"] for o in compiler.options)
    longest = 40
    assert {shape[:2] for shape in compiler.shapes} == {(3, longest)}
    # Every part of every step, by layers twice; and no evaluation.
    steps = plain.max_steps * 3
    assert compiler.calls == (2 * SLOTS.layers * steps if how == "layers" else steps)


@pytest.mark.usefixtures("compiler")
def test_a_stopped_run_goes_on(sines: PreparedDataset, tmp_path: Path) -> None:
    training = replace(BRIEF, compile="model")
    plain = fit(small_transformer(), sines, BRIEF, tmp_path / "plain")
    with pytest.raises(Stopped):
        fit(small_transformer(), sines, training, tmp_path / "compiled", until=3)
    compiled = fit(small_transformer(), sines, training, tmp_path / "compiled")
    assert_alike(compiled, plain, "float32")


@slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_is_training(backend: str) -> None:
    """In a program of its own, as checks of shapes do not trace."""
    if backend == "inductor" and not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("the default backend needs a C++ compiler")
    command = [sys.executable, "-m", "tests.core.compiled_fit", backend]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small_sma(), "compile: rows of the layout 'packed' are as many as run"),
        (replace(small_sma(), dispatch="padded"), "compile: rows of the layout 'padded'"),
        (
            GRUConfig(inputs=InputConfig(numeric=2), head=HeadConfig(kind="forecast", outputs=2)),
            "compile: a GRU runs in kernels of its own",
        ),
    ],
)
def test_what_makes_no_static_graph_is_refused(
    sines: PreparedDataset, config: ArchitectureConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fit(config, sines, replace(SHORT, compile="layers"))


def test_no_graph_of_a_whole_model_that_is_cut(markers: PreparedDataset) -> None:
    cut = {"processes": 2, "sharding": "fsdp"}
    check_fit(SLOTS, markers, replace(SHORT, compile="layers"), **cut)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compile: fsdp gathers weights between layers"):
        check_fit(SLOTS, markers, replace(SHORT, compile="model"), **cut)  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_named(
    sines: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(*_: Any) -> Any:
        raise BackendCompilerFailed(broken, RuntimeError("no C++ compiler was found"), None)

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    training = replace(SHORT, compile="layers")
    with pytest.raises(ConfigError, match=r"^compile: 'layers' does not work here: .*no C\+\+"):
        fit(small_transformer(), sines, training, tmp_path / "model")


def test_the_word_is_checked() -> None:
    with pytest.raises(ConfigError, match="compile: must be one of none, layers, model, not 'all'"):
        TrainingConfig(compile="all")  # type: ignore[arg-type]
    assert "compile" not in TrainingConfig().to_dict()  # digests of earlier runs stay
    assert TrainingConfig(compile="layers").to_dict()["compile"] == "layers"
