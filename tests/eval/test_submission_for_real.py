"""`sma-eval submit` to Ray's own job server; slow, needs ray[default]: docs/cluster.md."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Ray with a job server, as somebody would on a head, and return its address."""
    dashboard = free_port()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ray = shutil.which("ray", path=programs)
    assert ray is not None
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-port={dashboard}"]
    log = tmp_path_factory.mktemp("ray") / "log"
    environment = {**os.environ, "PATH": programs, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        log.open("w") as told,
        subprocess.Popen(command, env=environment, stdout=told, stderr=told) as process,
    ):
        address = f"http://127.0.0.1:{dashboard}"
        try:
            deadline = time.monotonic() + 120.0
            # The job server is up before the node is that its jobs run on.
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def submit(folder: Path, address: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = "from sma_eval.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "submit", "study.toml", "--address", address, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_study_runs_as_a_job_and_again_goes_on(server: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text())
    out = tmp_path / "shared" / "run"
    done = submit(tmp_path, server, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert "[4/4]" in done.stderr
    assert done.stderr.count("[1/4]") == 1
    assert Outcome.read(out).count("finished") == 4
    again = submit(tmp_path, server, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "[1/4]" not in again.stderr


def test_the_exit_code_of_a_refused_run_comes_back(server: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    done = submit(tmp_path, server, "--out", str(tmp_path / "taken"))
    assert done.returncode == 2, done.stderr
    assert "is no study folder and not empty" in done.stderr
