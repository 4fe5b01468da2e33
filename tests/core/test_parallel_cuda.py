"""Two GPUs and NCCL train as one does, and end together when one process fails."""

import signal
from pathlib import Path

import pytest
import torch
from tests.core.parallel_program import LAUNCHES
from tests.core.parallel_runs import ALIKE, assert_alike, errors, exits, launch
from tests.core.tasks import marker_dataset, sine_dataset

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs."""
    folder = tmp_path_factory.mktemp("gpus")
    sine_dataset(folder / "sines")
    marker_dataset(folder / "markers")
    launch(folder, "cuda")
    return folder


@pytest.mark.parametrize("case", LAUNCHES["cuda"][0].cases)
def test_two_gpus_train_as_one_does(launched: Path, case: str) -> None:
    assert exits(launched, "two") == [0, 0], errors(launched, "two", 0)[-3000:]
    row = "bfloat16" if case == "narrow" else "float64"
    assert_alike(launched / "two" / case, launched / "one" / ALIKE.get(case, case), row)


@pytest.mark.parametrize("case", LAUNCHES["cuda"][1].cases)
def test_compiled_training_gives_the_same(launched: Path, case: str) -> None:
    assert exits(launched, "compiled") == [0, 0], errors(launched, "compiled", 0)[-3000:]
    assert_alike(launched / "compiled" / case, launched / "one" / ALIKE[case], "float64")


def test_a_stopped_run_is_taken_up_by_one_gpu(launched: Path) -> None:
    assert exits(launched, "stop") == [1, 1]
    for rank in range(2):
        assert "Stopped: stopped after step 5, to be taken up" in errors(launched, "stop", rank)
    assert exits(launched, "taken up") == [0], errors(launched, "taken up", 0)[-3000:]
    assert_alike(launched / "stop" / "steered fsdp", launched / "one" / "steered", "float64")


def test_a_rank_that_raises_ends_the_other(launched: Path) -> None:
    assert exits(launched, "raise") == [1, 1]
    said = "rank 1 of 2 failed, and the run with it: ValueError: the disk is full"
    assert said in errors(launched, "raise", 0)


def test_a_rank_that_is_killed_ends_the_other(launched: Path) -> None:
    """Rank 0 may hang in a collective, which no exception ends: it is ended by force."""
    assert exits(launched, "kill") == [1, -signal.SIGKILL]
    said = "rank 1 of 2 failed, and the run with it: gave no sign of life for"
    assert said in errors(launched, "kill", 0)
