"""Two processes train together, and one of them has no active row: neither waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds, after which a process counts as hanging

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo",
)


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.core.distributed",
                str(rank),
                str(tmp_path),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert out.split("\n") == ["ddp packed", "ddp padded", "ddp capacity", "fsdp packed", ""]
