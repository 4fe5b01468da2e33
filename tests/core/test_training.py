"""Training: it learns, it resumes bit for bit, it stops in time, it says what does not fit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.core.tasks import SHORT, sine_dataset, small_sma, small_transformer
from tests.slow import slow

from sma_core.baselines import dense_twin
from sma_core.checkpoint import load_checkpoint
from sma_core.config import ArchitectureConfig, HeadConfig, InputConfig
from sma_core.dataset import (
    Batch,
    DatasetWriter,
    NumericChannel,
    PreparedDataset,
    WindowSampler,
)
from sma_core.errors import ConfigError, DatasetError, DivergenceError, TrainingError
from sma_core.objectives import activation_rates
from sma_core.parallel import Stopped
from sma_core.training import (
    FitResult,
    Progress,
    TrainingConfig,
    adopt,
    evaluate,
    fit,
    learning_rate,
)
from sma_core.training_step import noise_seed

LONG = replace(
    SHORT,
    window=64,
    batch_size=8,
    max_steps=100,
    learning_rate=1e-2,
    warmup_steps=10,
    evaluate_every=50,
    evaluate_batches=8,
    patience=20,
    checkpoint_every=1000,
)


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


def numbers(result: FitResult) -> tuple:
    """All of a result that does not depend on the clock or the folder."""
    history = [replace(progress, tokens_per_second=0.0) for progress in result.history]
    return result.best_step, result.validation_metrics, result.steps, history


def assert_same(result: FitResult, undisturbed: FitResult) -> None:
    weights, expected = (
        load_file(r.checkpoint / "weights.safetensors") for r in (result, undisturbed)
    )
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)
    assert numbers(result) == numbers(undisturbed)


@pytest.mark.parametrize(
    "config", [small_sma(), small_transformer()], ids=lambda config: config.architecture
)
def test_a_forecast_beats_persistence(
    sines: PreparedDataset, tmp_path: Path, config: ArchitectureConfig
) -> None:
    result = fit(config, sines, LONG, tmp_path / "model")
    rows = sines.split("validation")
    persistence = []
    for ref in rows.sequences:
        numeric = rows.read(ref.start, ref.stop).numeric
        assert numeric is not None
        persistence.append(F.smooth_l1_loss(numeric[:-1], numeric[1:]))
    # Noise alone costs about 0.3^2 / 2 = 0.045.
    assert result.best_validation_loss < 0.5 * torch.stack(persistence).mean()
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert ("activation_rate" in result.validation_metrics) == (config.architecture == "sma")


@pytest.mark.parametrize("outputs", [1, pytest.param(2, marks=slow)])
def test_step_classes_are_learned(sines: PreparedDataset, tmp_path: Path, outputs: int) -> None:
    """The class is the sign one step earlier, so half of the accuracy needs memory."""
    head = HeadConfig(kind="step_classification", outputs=outputs)
    training = replace(LONG, positive_weight=2.0)
    result = fit(small_sma(head), sines, training, tmp_path / "model")
    assert result.validation_metrics["accuracy"] > 0.9


def test_sequence_classes_are_learned(markers: PreparedDataset, tmp_path: Path) -> None:
    head = HeadConfig(kind="sequence_classification", outputs=2)
    result = fit(small_sma(head), markers, LONG, tmp_path / "model")
    assert result.validation_metrics["accuracy"] > 0.9


@pytest.mark.parametrize("target", [0.2, pytest.param(0.7, marks=slow)])
def test_the_activation_rate_reaches_its_target(
    sines: PreparedDataset, tmp_path: Path, target: float
) -> None:
    """In every layer and sub-module, not only on average."""
    training = replace(LONG, target_rate=target)
    result = fit(small_sma(), sines, training, tmp_path / "model")
    assert result.validation_metrics["activation_rate"] == pytest.approx(target, abs=0.05)
    model = load_checkpoint(result.checkpoint).model
    sampler = WindowSampler(sines.split("validation"), "forecast", window=64, batch_size=99)
    batch = sampler.batch(0)
    with torch.no_grad():
        rates = activation_rates(model(batch.inputs).decisions, batch.inputs.valid)
    assert rates.flatten().tolist() == pytest.approx([target] * 4, abs=0.1)


@pytest.fixture(scope="module")
def undisturbed(sines: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return fit(small_sma(dropout=0.1), sines, SHORT, tmp_path_factory.mktemp("straight") / "m")


@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (8, 11), (5, 6, 7), (12,)])
def test_a_stopped_run_ends_like_an_undisturbed_one(
    sines: PreparedDataset, tmp_path: Path, undisturbed: FitResult, steps: tuple[int, ...]
) -> None:
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            fit(small_sma(dropout=0.1), sines, SHORT, tmp_path / "m", on_progress=stop_at(step))
        torch.rand(7)  # whatever else uses random numbers meanwhile changes nothing
    first: list[int] = []
    result = fit(
        small_sma(dropout=0.1),
        sines,
        SHORT,
        tmp_path / "m",
        on_progress=lambda progress: first.append(progress.step),
    )
    assert first[:1] == ([steps[-1] // 3 * 3 + 1] if steps[-1] < 12 else [])
    assert_same(result, undisturbed)
    assert not (tmp_path / "m" / "progress").exists()


def test_a_killed_process_can_be_taken_up_again(
    sines: PreparedDataset, tmp_path: Path, undisturbed: FitResult
) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from sma_core.dataset import PreparedDataset
from sma_core.training import fit
from tests.core.tasks import SHORT, small_sma
import torch
torch.set_num_threads({torch.get_num_threads()})
def kill(progress):
    if progress.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
fit(small_sma(dropout=0.1), PreparedDataset.open(Path(sys.argv[1])), SHORT, Path(sys.argv[2]),
    on_progress=kill)
"""
    arguments = [sys.executable, "-c", code, str(sines.folder), str(tmp_path / "m")]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(arguments, cwd=root, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m" / "model.json").exists()
    assert_same(fit(small_sma(dropout=0.1), sines, SHORT, tmp_path / "m"), undisturbed)


def test_a_stop_while_the_state_is_written_loses_nothing(
    sines: PreparedDataset,
    tmp_path: Path,
    undisturbed: FitResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saves = 0

    def torn(tensors: dict, path: Path, metadata: dict | None = None) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr("sma_core.files.save_file", torn)
        with pytest.raises(KeyboardInterrupt):
            fit(small_sma(dropout=0.1), sines, SHORT, tmp_path / "m")
    seen: list[int] = []
    result = fit(
        small_sma(dropout=0.1),
        sines,
        SHORT,
        tmp_path / "m",
        on_progress=lambda progress: seen.append(progress.step),
    )
    assert seen[0] == 7
    assert_same(result, undisturbed)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    sines: PreparedDataset, tmp_path: Path, undisturbed: FitResult
) -> None:
    before = torch.get_rng_state()
    same = fit(small_sma(dropout=0.1), sines, SHORT, tmp_path / "same")
    assert torch.get_rng_state().equal(before)
    assert_same(same, undisturbed)
    other = fit(small_sma(dropout=0.1), sines, replace(SHORT, seed=1), tmp_path / "other")
    assert numbers(other) != numbers(undisturbed)


def test_a_finished_run_is_returned_at_once(sines: PreparedDataset, undisturbed: FitResult) -> None:
    again = fit(
        small_sma(dropout=0.1), sines, SHORT, undisturbed.checkpoint, on_progress=stop_at(1)
    )
    assert again == undisturbed
    with pytest.raises(TrainingError, match="holds a model of another configuration"):
        fit(small_sma(), sines, SHORT, undisturbed.checkpoint)


def test_a_stop_right_after_the_checkpoint_leaves_no_progress_for_ever(
    sines: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sma_core.training.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(small_sma(), sines, SHORT, tmp_path / "m")
    assert (tmp_path / "m" / "model.json").exists()
    assert (tmp_path / "m" / "progress").exists()
    fit(small_sma(), sines, SHORT, tmp_path / "m", on_progress=stop_at(1))
    assert not (tmp_path / "m" / "progress").exists()


def test_each_batch_is_read_once_and_the_next_before_a_step_is_reported(
    sines: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device would otherwise wait while the host reads."""
    read: list[int] = []
    reported: list[tuple[int, int]] = []
    plain = WindowSampler.batch

    def batch(self: WindowSampler, index: int, **fields: Any) -> Batch:
        if self.split.path.name == "train.safetensors":
            read.append(index)
        return plain(self, index, **fields)

    monkeypatch.setattr(WindowSampler, "batch", batch)
    training = replace(SHORT, max_steps=5, accumulation_steps=2)
    fit(
        small_sma(),
        sines,
        training,
        tmp_path / "m",
        on_progress=lambda progress: reported.append((progress.step, max(read))),
    )
    assert read == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert reported == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)]


def test_a_batch_in_parts_reports_the_figures_of_the_whole(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    """Of the first step, before rounding in another order has changed a weight."""
    seen: list[Progress] = []
    for parts in (1, 3):  # 4 windows: parts of 2, 1 and 1
        with pytest.raises(Stopped):
            fit(
                small_sma(),
                sines,
                replace(SHORT, accumulation_steps=parts),
                tmp_path / str(parts),
                on_progress=seen.append,
                until=1,
            )
    whole, cut = seen
    assert whole.activation_rate is not None
    assert 0.0 < whole.activation_rate < 1.0
    assert cut.activation_rate == pytest.approx(whole.activation_rate)
    assert cut.train_loss == pytest.approx(whole.train_loss)


def test_no_two_processes_and_steps_draw_the_same_noise() -> None:
    """Of a seed the CPU's generator reads 32 bits."""
    drawn = set()
    for rank in range(64):
        for step in range(8):
            generator = torch.Generator().manual_seed(noise_seed(2**32 - 1, step, rank))
            drawn.add(tuple(torch.rand(4, generator=generator).tolist()))
    assert len(drawn) == 64 * 8


def test_a_folder_of_another_unfinished_run_is_refused(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(small_sma(), sines, SHORT, tmp_path / "m", on_progress=stop_at(4))
    with pytest.raises(TrainingError, match="unfinished training of another"):
        fit(small_sma(), sines, replace(SHORT, seed=1), tmp_path / "m")
    state = tmp_path / "m" / "progress" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"is damaged .*remove it to train from the start"):
        fit(small_sma(), sines, SHORT, tmp_path / "m")


def test_training_stops_when_validation_no_longer_improves(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    """A rate of learning that destroys: the checkpoint is of the best step, not of the last."""
    training = replace(
        SHORT, max_steps=400, learning_rate=0.5, warmup_steps=40, evaluate_every=2, patience=3
    )
    result = fit(small_sma(), sines, training, tmp_path / "m")
    losses = {progress.step: progress.validation_loss for progress in result.history}
    assert result.steps < 400
    assert result.steps == result.best_step + 3 * 2
    best = losses[result.best_step]
    assert best is not None
    assert best == min(loss for loss in losses.values() if loss is not None)
    model = load_checkpoint(result.checkpoint).model
    sampler = WindowSampler(
        sines.split("validation"), "forecast", window=training.window, batch_size=4
    )
    assert evaluate(model, sampler, training)["loss"] == best


def test_what_the_card_keeps(sines: PreparedDataset, tmp_path: Path) -> None:
    result = fit(small_sma(), sines, SHORT, tmp_path / "m", provenance={"plan": "p"})
    card = load_checkpoint(result.checkpoint).card
    assert card["provenance"]["plan"] == "p"
    assert card["provenance"]["fit"]["best_step"] == result.best_step
    assert [channel["name"] for channel in card["dataset"]["numeric"]] == ["a", "b"]


def test_the_learning_rate_rises_and_falls() -> None:
    training = replace(LONG, max_steps=110)
    rates = [learning_rate(step, training) for step in range(110)]
    assert rates[9] == max(rates) == training.learning_rate
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[0] == pytest.approx(training.learning_rate / 10)
    assert rates[-1] == pytest.approx(training.learning_rate / 10, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window: must be at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size: must be a number, not 2.5"),
        ({"max_steps": True}, "max_steps: must be a number, not True"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: must be above 0, not nan"),
        ({"gradient_clip": float("inf")}, "gradient_clip: must be above 0, not inf"),
        ({"weight_decay": -1.0}, "weight_decay: must be at least 0, not -1.0"),
        ({"target_rate": 1.5}, "target_rate: must be at least 0 and at most 1, not 1.5"),
        ({"positive_weight": "2"}, "positive_weight: must be a number, not '2'"),
        ({"patience": None}, "patience: must be a number, not None"),
        ({"seed": 2**32}, "seed: must be at least 0 and at most 4294967295, not 4294967296"),
    ],
)
def test_a_wrong_training_field_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**change)
    assert str(caught.value) == message


def test_a_model_that_does_not_fit_the_data_is_refused(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    config = small_sma()
    wide = replace(
        config, inputs=InputConfig(numeric=3), head=HeadConfig(kind="forecast", outputs=3)
    )
    steps = replace(config, head=HeadConfig(kind="step_classification", outputs=3))
    whole = replace(config, head=HeadConfig(kind="sequence_classification", outputs=2))
    categories = replace(config, inputs=InputConfig(numeric=2, categorical=(4,)))
    rate = replace(SHORT, target_rate=0.5)
    for model, training, error, message in (
        (wide, SHORT, ConfigError, "inputs.numeric: the data set has 2 numeric channels"),
        (categories, SHORT, ConfigError, r"inputs.categorical: the data set's vocabularies"),
        (steps, SHORT, ConfigError, "head.outputs: the data set has the 2 classes below, above"),
        (whole, SHORT, DatasetError, "needs the tensor 'sequence_target'"),
        (dense_twin(config), rate, ConfigError, "target_rate: the model has no policy that learns"),
        (small_transformer(), rate, ConfigError, "target_rate: the model has no policy"),
    ):
        with pytest.raises(error, match=message):
            fit(model, sines, training, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_data_set_without_validation_rows_is_refused(tmp_path: Path) -> None:
    channels = [NumericChannel(name="a"), NumericChannel(name="b")]
    for name, splits in (("none", []), ("empty", ["validation"])):
        with DatasetWriter(tmp_path / name, name=name, numeric=channels, splits=splits) as out:
            out.append("train", entity=0, time=torch.arange(9), numeric=torch.zeros(9, 2))
        with pytest.raises(DatasetError, match=r"no split 'validation'|no row to learn forecast"):
            fit(small_sma(), PreparedDataset.open(tmp_path / name), SHORT, tmp_path / "m")


def test_a_fit_that_diverges_ends_in_one_clear_error(tmp_path: Path) -> None:
    training = replace(SHORT, learning_rate=1e38, warmup_steps=0)
    with pytest.raises(DivergenceError, match=r"step \d+: the gradient is not finite .*lower"):
        fit(small_sma(), sine_dataset(tmp_path / "data"), training, tmp_path / "m")


def test_a_run_that_is_to_stop_in_between_ends_as_if_it_had_not(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    whole = fit(small_sma(), sines, SHORT, tmp_path / "whole")
    parts, seen = tmp_path / "parts", []
    # Neither is a multiple of checkpoint_every; the same one again does nothing.
    for until in (5, 5, 8):
        with pytest.raises(Stopped, match=f"stopped after step {until}, as asked"):
            fit(
                small_sma(),
                sines,
                SHORT,
                parts,
                on_progress=lambda progress: seen.append(progress.step),
                until=until,
            )
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    # At the last step there is nothing to stop before.
    assert_same(fit(small_sma(), sines, SHORT, parts, until=SHORT.max_steps), whole)


def test_another_run_goes_on_with_the_weights_and_its_own_settings(
    sines: PreparedDataset, tmp_path: Path
) -> None:
    other = replace(SHORT, learning_rate=1e-3)
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(small_sma(), sines, SHORT, folder, until=8)
    with pytest.raises(TrainingError, match="unfinished training of another"):
        fit(small_sma(), sines, other, folder)
    adopt(small_sma(), sines, other, folder)
    result = fit(small_sma(), sines, other, folder)
    assert load_checkpoint(folder).card["provenance"]["fit"]["training"]["learning_rate"] == 1e-3
    # Up to there it is the first run, after that neither of the two.
    first = fit(small_sma(), sines, SHORT, tmp_path / "first")
    second = fit(small_sma(), sines, other, tmp_path / "second")
    losses = [[point.validation_loss for point in r.history] for r in (result, first, second)]
    assert losses[0][:2] == losses[1][:2] != losses[2][:2]
    assert losses[0][2] not in (losses[1][2], losses[2][2])
    with pytest.raises(TrainingError, match="absent or damaged"):
        adopt(small_sma(), sines, other, tmp_path / "nothing")
