"""`sma-pilot ui`: it serves the store on loopback, and ends with every process that it started."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.pilot.fabricated_run import make_run
from tests.slow import slow
from typer.testing import CliRunner

from sma_pilot import cli, ui
from sma_pilot.errors import TrackingError
from sma_pilot.report.page import write_report
from sma_pilot.store import store_uri
from sma_pilot.tracking import track

PATIENCE = 120.0  # seconds; a cold start on a busy machine


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("out")
    run = make_run(folder, days=4)
    write_report(run.path)
    shutil.copy2(empty_database, folder / "mlflow.db")
    uri = store_uri(folder / "mlflow.db")
    (folder / "run-id").write_text(track(run.path, uri))
    return folder


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give a function that starts a command in an empty folder, and end what it started."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "cwd").mkdir()

    def begin(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, cwd=tmp_path / "cwd", stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE)


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.read()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@slow
def test_it_serves_on_loopback_and_ends_without_a_trace(
    out: Path,
    port: int,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", "from sma_pilot.cli import main; main()"]
    process = start(*command, "ui", "--out", str(out), "--port", str(port))
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    assert f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning" in "".join(lines)
    root = f"http://127.0.0.1:{port}"
    assert fetch(f"{root}/health") == b"OK"
    run_id = (out / "run-id").read_text()
    page = fetch(f"{root}/get-artifact?path=report.html&run_uuid={run_id}")
    assert b"Pilot on historical logs" in page
    family = psutil.Process(process.pid).children(recursive=True)
    listening = {
        link.laddr.ip
        for member in family
        for link in member.net_connections()
        if link.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 0
    assert family
    assert not [member for member in family if member.is_running()]
    with pytest.raises(urllib.error.URLError):
        fetch(f"{root}/health")
    assert not list((tmp_path / "cwd").iterdir()), "written where the command ran"


def test_without_a_store_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no MLflow store here yet; run `sma-pilot demo`"):
        ui.serve_ui(tmp_path / "mlflow.db", port=5000)
    assert not list(tmp_path.iterdir())


def test_without_a_store_the_command_exits_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sma-pilot", "ui", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_port_out_of_range_is_refused(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli.app, ["ui", "--port", "70000"]).exit_code == 2


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("id,name\n")
    with pytest.raises(TrackingError, match="not an SQLite database"):
        ui.serve_ui(tmp_path / "mlflow.db", port=5000)


def test_a_taken_port_is_named(empty_database: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} of 127.0.0.1 is taken.*--port"):
            ui.serve_ui(empty_database, port=port)


def test_an_address_of_another_machine_is_refused(empty_database: Path, port: int) -> None:
    # 192.0.2.0/24 is set aside for examples: no machine has such an address.
    with pytest.raises(TrackingError, match=r"cannot listen .* of 192.0.2.1"):
        ui.serve_ui(empty_database, port=port, host="192.0.2.1")


@pytest.mark.parametrize(
    ("host", "loopback", "address"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("localhost", True, "localhost"),
        ("::1", True, "[::1]"),
        ("0.0.0.0", False, "127.0.0.1"),  # noqa: S104
        ("plant.example", False, "plant.example"),
    ],
)
def test_only_loopback_comes_without_a_warning(host: str, loopback: bool, address: str) -> None:
    assert ui._is_loopback(host) is loopback
    assert ui._address(host) == address


def test_a_server_that_does_not_come_up_is_quoted(tmp_path: Path, port: int) -> None:
    with (tmp_path / "log").open("w+b") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.exit('schema of another age')"], stderr=log
        )
        server.wait()
        with pytest.raises(TrackingError, match="schema of another age"):
            ui._wait_until_ready(server, log, "127.0.0.1", port)


def test_a_server_that_will_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "_STOP_SECONDS", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = deaf + f"open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(600)"
    parent = deaf + f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    server = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        assert wait_for((tmp_path / "up").exists)
        family = psutil.Process(server.pid).children(recursive=True)
        assert family
        ui._end(server)
        assert server.returncode == -signal.SIGKILL
        assert wait_for(lambda: not any(_lives(member) for member in family))
    finally:
        if ui._group_lives(server):
            os.killpg(server.pid, signal.SIGKILL)


def _lives(process: psutil.Process) -> bool:
    # An orphan that ended stays listed until whoever adopted it looks.
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
