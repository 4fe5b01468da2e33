"""What `tests.core.parallel_program` left: exit codes, errors, and the runs to compare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.tolerances import TOLERANCES, assert_close

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")]),
}
# What one process trained, by the case that must end like it.
ALIKE = {
    "steered fsdp": "steered",
    "marked parts": "marked",
    "marked parts fsdp": "marked",
    "transformer fsdp": "transformer",
    "slots compiled": "slots",
    "slots compiled fsdp": "slots",
}


def launch(folder: Path, device: str) -> None:
    """Do all runs of a kind of device in `folder`, which holds their data sets."""
    program = [sys.executable, "-m", "tests.core.parallel_program", "launch", str(folder), device]
    done = subprocess.run(
        program, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def exits(folder: Path, label: str) -> list[int | None]:
    return json.loads((folder / "exits.json").read_text())[label]


def errors(folder: Path, label: str, rank: int) -> str:
    return (folder / f"{label}.{rank}").read_text()


def assert_alike(run: Path, alone: Path, row: str) -> None:
    """Compare weights, and every figure of the card that does not depend on the clock."""
    weights, expected = (load_file(folder / "weights.safetensors") for folder in (run, alone))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert_close(tensor, expected[name], row)
    card, other = (
        json.loads((folder / "model.json").read_text())["provenance"]["fit"]
        for folder in (run, alone)
    )
    limit = max(TOLERANCES[row].relative, TOLERANCES["float32"].relative)  # rates are float32
    assert card["steps"] == other["steps"]
    assert card["best_step"] == other["best_step"]
    assert card["metrics"] == pytest.approx(other["metrics"], rel=limit)
    assert len(card["history"]) == len(other["history"]) == 2
    for progress, expected_progress in zip(card["history"], other["history"], strict=True):
        for figures in (progress, expected_progress):
            del figures["tokens_per_second"]
            for name in ("activation_rate", "validation_accuracy"):  # None: no router, no classes
                figures[name] = figures[name] or 0.0
        assert progress == pytest.approx(expected_progress, rel=limit)
