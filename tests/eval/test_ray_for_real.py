"""A cluster met from outside: `submit` to its job server, `run` by its client server.

Slow, and needs ray[default]: docs/cluster.md.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.eval.studies import study_text
from tests.slow import slow

from sma_eval.experiment import Outcome

pytestmark = [
    slow,
    pytest.mark.skipif(
        importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default]"
    ),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Head(NamedTuple):
    """Addresses of a cluster's head."""

    jobs: str
    client: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a Ray as somebody would on a head."""
    dashboard, client = free_port(), free_port()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ray = shutil.which("ray", path=programs)
    assert ray is not None
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={free_port()}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-port={dashboard}"]
    log = tmp_path_factory.mktemp("ray") / "log"
    environment = {**os.environ, "PATH": programs, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        log.open("w") as told,
        subprocess.Popen(command, env=environment, stdout=told, stderr=told) as process,
    ):
        try:
            deadline = time.monotonic() + 120.0
            # The job server is up before the node is that its jobs run on.
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield Head(f"http://127.0.0.1:{dashboard}", f"ray://127.0.0.1:{client}")
        finally:
            process.terminate()


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    program = "from sma_eval.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sma_eval(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    with start(folder, *arguments) as process:
        told = process.communicate(timeout=500)
    return subprocess.CompletedProcess(arguments, process.returncode, *told)


def submit(folder: Path, head: Head, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return sma_eval(folder, "submit", "study.toml", "--address", head.jobs, *arguments)


def test_a_study_runs_as_a_job_and_again_goes_on(head: Head, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text())
    out = tmp_path / "shared" / "run"
    done = sma_eval(
        tmp_path, "submit", "study.toml", "--address", head.jobs, "--out", str(out), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert "[4/4]" in done.stderr
    assert done.stderr.count("[1/4]") == 1
    assert Outcome.read(out).count("finished") == 4
    again = submit(tmp_path, head, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "[1/4]" not in again.stderr


def test_the_exit_code_of_a_refused_run_comes_back(head: Head, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    done = sma_eval(
        tmp_path, "submit", "study.toml", "--address", head.jobs, "--out", str(tmp_path / "taken")
    )
    assert done.returncode == 2, done.stderr
    assert "is no study folder and not empty" in done.stderr


def test_a_study_runs_by_the_client_as_it_does_here(head: Head, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text())
    whole = {}
    for address in ("local", head.client):
        out = tmp_path / address.partition(":")[0]
        done = sma_eval(tmp_path, "run", "study.toml", "--out", str(out), "--address", address)
        assert done.returncode == 0, done.stderr
        assert "[4/4]" in done.stderr
        whole[address] = [
            (record.trial.id, record.status, record.result and record.result.test)
            for record in Outcome.read(out).records
        ]
    assert whole[head.client] == whole["local"]


def test_by_the_client_ctrl_c_and_kill_lose_no_trial(head: Head, tmp_path: Path) -> None:
    changes = {
        "max_steps": "max_steps = 2000",
        "evaluate_every": "evaluate_every = 100",
        "checkpoint_every": "checkpoint_every = 100",
    }
    (tmp_path / "study.toml").write_text(study_text(**changes))
    out = tmp_path / "run"
    again = ("resume", str(out), "--address", head.client)
    first = ("run", "study.toml", "--out", str(out), "--address", head.client)
    for arguments, sent, code in ((first, signal.SIGINT, 130), (again, signal.SIGKILL, -9)):
        with start(tmp_path, *arguments) as process:
            assert process.stderr is not None
            while "running: " not in (line := process.stderr.readline()):
                assert process.poll() is None, line
            process.send_signal(sent)
            _, told = process.communicate(timeout=100)
        assert process.returncode == code, told
        assert not any(record.failed for record in Outcome.read(out).records)
    # At once, while the cluster still has the sweep of the driver that was killed.
    done = sma_eval(tmp_path, *again)
    assert done.returncode == 0, done.stderr
    assert Outcome.read(out).count("finished") == 4
