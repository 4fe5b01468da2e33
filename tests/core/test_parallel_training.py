"""Several processes train as one does, end together when one fails, and stop where they can go on.

All runs with more than one process are of one program, `tests.core.parallel_program`, which lists
them; the tests here read what they left.
"""

import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.core.parallel_program import BRIEF, LAUNCHES, STEERED
from tests.core.parallel_runs import ALIKE, ENVIRONMENT, ROOT, assert_alike, errors, exits, launch
from tests.core.tasks import SHORT, marker_dataset, sine_dataset, small_sma, small_transformer
from tests.slow import slow
from tests.tolerances import TOLERANCES
from torch import distributed

from sma_core.config import AlwaysConfig, NeverConfig, PeriodicConfig, RandomConfig
from sma_core.dataset import PreparedDataset, WindowSampler
from sma_core.errors import ConfigError
from sma_core.model import build_model
from sma_core.objectives import routing_loss, task_loss
from sma_core.parallel import ALONE, Spread, join
from sma_core.policy_configs import BudgetConfig, GumbelConfig, SigmoidConfig, TopKConfig
from sma_core.training import TrainingConfig, fit
from sma_core.training_step import Stepper

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    sine_dataset(folder / "sines")
    marker_dataset(folder / "markers")
    return folder


@pytest.fixture(scope="module")
def launched(data: Path) -> Path:
    """Folder of all runs."""
    launch(data, "cpu")
    return data


@needs_gloo
@pytest.mark.parametrize(
    ("label", "case"),
    [
        (launch.label, case)
        for launch in LAUNCHES["cpu"]
        if launch.what == "fit" and launch.label != "taken up"
        for case in launch.cases
    ],
)
def test_several_processes_train_as_one_does(launched: Path, label: str, case: str) -> None:
    """Also where a batch has fewer windows than there are processes, and part by part."""
    size = next(launch.processes for launch in LAUNCHES["cpu"] if launch.label == label)
    assert exits(launched, label) == [0] * size, errors(launched, label, 0)[-3000:]
    row = "bfloat16" if case == "narrow" else "float64"
    assert_alike(launched / label / case, launched / "one" / ALIKE.get(case, case), row)


@needs_gloo
def test_a_stopped_run_is_taken_up_by_another_number_of_processes(launched: Path) -> None:
    """One of two was asked to stop; both did, after the same step."""
    assert exits(launched, "stop") == [1, 1]
    for rank in range(2):
        assert "Stopped: stopped after step 5, to be taken up" in errors(launched, "stop", rank)
    assert exits(launched, "taken up") == [0] * 4, errors(launched, "taken up", 0)[-3000:]
    assert_alike(launched / "stop" / "steered fsdp", launched / "one" / "steered", "float64")


@needs_gloo
def test_a_rank_that_raises_ends_the_others(launched: Path) -> None:
    assert exits(launched, "raise") == [1, 1]
    said = "rank 1 of 2 failed, and the run with it: ValueError: the disk is full"
    assert f"TrainingError: {said}" in errors(launched, "raise", 0)
    assert "ValueError: the disk is full" in errors(launched, "raise", 1).splitlines()[-1]


@needs_gloo
def test_a_rank_that_is_killed_ends_the_others(launched: Path) -> None:
    assert exits(launched, "kill") == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        said = errors(launched, "kill", rank)
        assert "rank 1 of 3 failed, and the run with it: gave no sign of life for" in said
        assert "TrainingError" in said


@needs_gloo
@slow
def test_ctrl_c_under_torchrun_leaves_a_run_to_take_up(data: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = ["-m", "tests.core.parallel_program", "rank", "interrupt"]
    folder = data / "torchrun"
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *program, str(folder), "steered"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    said = re.findall(r"Stopped: stopped after step (\d), to be taken up", done.stderr)
    assert said in (["4", "4"], ["5", "5"]), done.stderr[-3000:]
    with safe_open(folder / "steered" / "progress" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["values"])["step"] == int(said[0])


@pytest.mark.parametrize("parts", [2, 3, 5, 7])
def test_parts_hold_each_window_of_a_batch_once(data: Path, parts: int) -> None:
    """Of different lengths, in a last batch that is short, and with more parts than windows."""
    split = PreparedDataset.open(data / "markers").split("train")
    sampler = WindowSampler(split, "sequence_classification", window=16, batch_size=6)
    for index in range(sampler.batches_per_epoch):
        whole = sampler.batch(index)
        dealt = [sampler.batch(index, part=part, parts=parts) for part in range(parts)]
        assert all(part.mask.shape[1] == whole.mask.shape[1] for part in dealt)
        rows = [
            (tuple(row[steps].flatten().tolist()), int(target))
            for part in dealt
            if part.inputs.numeric is not None
            for row, steps, target in zip(part.inputs.numeric, part.mask, part.target, strict=True)
            if steps.any()
        ]
        assert whole.inputs.numeric is not None
        expected = [
            (tuple(row[steps].flatten().tolist()), int(target))
            for row, steps, target in zip(
                whole.inputs.numeric, whole.mask, whole.target, strict=True
            )
        ]
        assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize(
    "policy",
    [
        AlwaysConfig(),
        NeverConfig(),
        PeriodicConfig(stride=3),
        RandomConfig(rate=0.5),
        SigmoidConfig(),
        GumbelConfig(),
        TopKConfig(rate=0.5),
        BudgetConfig(rate=0.5),
    ],
    ids=lambda policy: policy.kind,
)
def test_every_weight_is_in_the_graph_of_every_step(data: Path, policy: object) -> None:
    """DDP waits for each weight's gradient, also where nothing ran and nothing can be learned."""
    config = replace(small_sma(), policy=policy)
    split = PreparedDataset.open(data / "sines").split("train")
    sampler = WindowSampler(split, "forecast", window=16, batch_size=1)
    for part in range(2):
        model = build_model(config).train()
        batch = sampler.batch(0, part=part, parts=2)
        outputs = model(batch.inputs)
        loss = task_loss(config.head, outputs.prediction, batch).total
        (loss + routing_loss(outputs.decisions, batch.inputs.valid, SHORT)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("config", [small_sma(dropout=0.1), small_transformer(dropout=0.1)])
def test_activation_checkpointing_keeps_less_and_changes_nothing(
    data: Path, tmp_path: Path, config: object
) -> None:
    split = PreparedDataset.open(data / "sines").split("train")
    batch = WindowSampler(split, "forecast", window=16, batch_size=4).batch(0)
    kept = {}
    for recompute in (False, True):
        spread = Spread(build_model(config), ALONE, recompute=recompute)  # type: ignore[arg-type]
        sizes: list[int] = []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            spread.module(batch.inputs)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3
    data_set = PreparedDataset.open(data / "sines")
    weights = [
        load_file(
            fit(
                config,  # type: ignore[arg-type]
                data_set,
                replace(BRIEF, activation_checkpointing=recompute),
                tmp_path / str(recompute),
            ).checkpoint
            / "weights.safetensors"
        )
        for recompute in (False, True)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_bfloat16_computes_narrowly_and_evaluates_widely(data: Path, tmp_path: Path) -> None:
    data_set = PreparedDataset.open(data / "sines")
    wide, narrow = (
        fit(small_sma(), data_set, replace(BRIEF, precision=precision), tmp_path / precision)
        for precision in ("float32", "bfloat16")
    )
    assert narrow.best_validation_loss != wide.best_validation_loss
    assert narrow.best_validation_loss == pytest.approx(
        wide.best_validation_loss, rel=TOLERANCES["bfloat16"].relative
    )
    weights = load_file(narrow.checkpoint / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_batch_norm_needs_the_whole_batch_at_once(data: Path, tmp_path: Path) -> None:
    config = replace(small_sma(), norm="batch")
    data_set = PreparedDataset.open(data / "sines")
    for change, message in (
        ({"accumulation_steps": 2}, "accumulation_steps cuts a batch"),
        ({"activation_checkpointing": True}, "activation_checkpointing runs a layer twice"),
    ):
        with pytest.raises(ConfigError, match=f"norm: .*{message}.*: use layer or scale"):
            fit(config, data_set, replace(SHORT, **change), tmp_path / "m")
    two = replace(ALONE, size=2)
    with pytest.raises(ConfigError, match=r"norm: .*2 processes each see a part"):
        fit(config, data_set, SHORT, tmp_path / "m", parallel=two)


def test_settings_at_their_old_meaning_leave_a_run_its_digest() -> None:
    later = {"precision", "accumulation_steps", "activation_checkpointing", "compile"}
    assert STEERED.to_dict() == {
        name: value for name, value in asdict(STEERED).items() if name not in later
    }
    changed = replace(STEERED, precision="bfloat16", activation_checkpointing=True)
    assert later - changed.to_dict().keys() == {"accumulation_steps", "compile"}
    assert TrainingConfig(**changed.to_dict()) == changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float16"}, "precision: must be one of float32, bfloat16, not 'float16'"),
        ({"accumulation_steps": 0}, "accumulation_steps: must be at least 1, not 0"),
        (
            {"activation_checkpointing": 1},
            "activation_checkpointing: must be true or false, not 1",
        ),
    ],
)
def test_a_wrong_field_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**change)
    assert str(caught.value) == message


def test_joining_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"sharding": "zero"}, "sharding: must be ddp or fsdp, not 'zero'"),
        ({"device": "tpu"}, "device: must be cuda or cpu, not 'tpu'"),
    ):
        with pytest.raises(ConfigError, match=message), join(**options):  # type: ignore[arg-type]
            pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"has no GPU, there are 2: .*--nproc-per-node 2"):
        join(device="cuda").__enter__()


def test_the_loss_of_a_step_is_the_mean_over_its_targets(data: Path) -> None:
    """In one part and in several, where the parts have different numbers of targets."""
    split = PreparedDataset.open(data / "sines").split("train")
    sampler = WindowSampler(split, "forecast", window=16, batch_size=5)
    for parts in (1, 3):
        spread, batch = Spread(build_model(small_transformer()), ALONE), sampler.batch(0)
        prediction = spread.model(batch.inputs).prediction
        expected = task_loss(spread.model.config.head, prediction, batch).mean.item()
        optimizer = torch.optim.AdamW(spread.model.parameters())
        training = replace(BRIEF, batch_size=5, accumulation_steps=parts)
        taken = Stepper(spread, optimizer, sampler, training, ALONE).take(0, "cpu")
        assert taken.loss == pytest.approx(expected, rel=TOLERANCES["float32"].relative)
