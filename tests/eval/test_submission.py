"""`sma-eval submit` against a job server that answers as Ray's does, over HTTP."""

import io
import json
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.eval.studies import study_text

from sma_eval import submission
from sma_eval.cli import main

JOB = "raysubmit_0001"
# What the job has printed, and how it stands, at each look.
STORY = [("PENDING", ""), ("RUNNING", "4 trials\n"), ("RUNNING", "4 trials\n[1/4]"), ("END", None)]
LOG = "4 trials\n[1/4] always: done\n"


class Server(ThreadingHTTPServer):
    """A job server that plays a story, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.end: dict[str, Any] = {"status": "SUCCEEDED", "driver_exit_code": 0}
        self.submitted: dict[str, Any] = {}
        self.package = b""
        self.looks = 0
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hangs up: the first only asks whether somebody listens."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        told = STORY[min(self.server.looks, len(STORY) - 1)]
        if self.path == "/api/version":
            self._answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "abc"})
        elif self.path.startswith("/api/packages/"):
            self._answer({}, 404)
        elif self.path == f"/api/jobs/{JOB}/logs":
            self.server.looks += 1
            self._answer({"logs": LOG if told[1] is None else told[1]})
        else:
            assert self.path == f"/api/jobs/{JOB}"
            how = self.server.end if told[1] is None else {"status": told[0]}
            self._answer({"type": "SUBMISSION", "entrypoint": "", "message": "so it is", **how})

    def do_PUT(self) -> None:
        self.server.package = self._body()
        self._answer({})

    def do_POST(self) -> None:
        assert self.path == "/api/jobs/"
        self.server.submitted = json.loads(self._body())
        self._answer({"job_id": JOB, "submission_id": JOB})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        refused = self.server.refuse(self.command, self.path)
        body = json.dumps(content).encode() if refused is None else b"<html>no</html>"
        self.send_response(refused or code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Submitted = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submitted(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Submitted:
    """Type ``sma-eval submit`` in a folder that holds a study and more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)
    # Another cluster, which must not win over --address.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    Path("study.toml").write_text(study_text())
    Path("secret.txt").write_text("not for the cluster")

    def submit(*arguments: str, address: str = server.address) -> tuple[int, str, str]:
        command = ["submit", "study.toml", "--address", address, *arguments]
        monkeypatch.setattr(sys, "argv", ["sma-eval", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return submit


def test_a_smoke_test_is_one_there(submitted: Submitted, server: Server) -> None:
    code, _, err = submitted("--out", "/shared/small", "--smoke-test")
    assert code == 0
    assert err.startswith("2 trials\n")
    assert server.submitted["entrypoint"] == (
        "sma-eval run study.toml --address auto --out /shared/small --smoke-test"
    )
    assert server.submitted["metadata"]["study"] == "tiny-smoke"


def test_the_study_file_goes_alone_and_the_log_comes_back(
    submitted: Submitted, server: Server
) -> None:
    places = ("--out", "/shared/my run", "--cache", "/shared/cache", "--tracking-uri", "http://m:5")
    code, out, err = submitted(*places)
    assert (code, out) == (0, f"{JOB} SUCCEEDED\n")
    assert err == f"4 trials\njob {JOB}: {server.submitted['entrypoint']}\n{LOG}"
    assert server.submitted["entrypoint"] == (
        "sma-eval run study.toml --address auto --out '/shared/my run' --cache /shared/cache "
        "--tracking-uri http://m:5"
    )
    assert server.submitted["metadata"]["study"] == "tiny"
    assert len(server.submitted["metadata"]["digest"]) == 64
    assert list(server.submitted["runtime_env"]) == ["working_dir"]
    with zipfile.ZipFile(io.BytesIO(server.package)) as package:
        assert package.namelist() == ["study.toml"]
        assert package.read("study.toml").decode() == study_text()
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": None}, 1),
        ({"status": "STOPPED", "driver_exit_code": None}, 130),
    ],
)
def test_the_exit_code_is_that_of_the_run(
    submitted: Submitted, server: Server, end: dict[str, Any], expected: int
) -> None:
    server.end = end
    code, out, err = submitted("--out", "/shared/run", "--json")
    assert code == expected
    assert err.endswith("so it is\n")
    document = json.loads(out)
    assert (document["id"], document["status"]) == (JOB, end["status"])
    assert (document["study"], document["address"]) == ("tiny", server.address)


def test_a_job_is_left_alone_when_asked(submitted: Submitted, server: Server) -> None:
    code, out, err = submitted("--out", "/shared/run", "--no-wait")
    assert (code, out) == (0, f"{JOB} PENDING\n")
    assert f"ray job logs {JOB} --follow --address {server.address}" in err
    assert server.looks == 0


def test_a_server_that_is_away_for_a_while_is_waited_for(
    submitted: Submitted, server: Server
) -> None:
    calls = 0

    def refuse(method: str, path: str) -> int | None:
        nonlocal calls
        calls += JOB in path
        return 503 if JOB in path and calls % 4 == 1 else None

    server.refuse = refuse
    code, _, err = submitted("--out", "/shared/run")
    assert code == 0
    assert err.endswith(LOG)
    assert err.count("[1/4]") == 1


def test_a_server_that_stays_away_is_named_and_the_job_goes_on(
    submitted: Submitted, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_PATIENCE_SECONDS", 0.0)
    server.refuse = lambda method, path: 503 if JOB in path else None
    code, out, err = submitted("--out", "/shared/run")
    assert (code, out) == (2, "")
    goes_on, error = err.splitlines()[-2:]
    assert goes_on == (
        f"the job goes on; stop it with: ray job stop {JOB} --address {server.address}"
    )
    assert "the job server failed" in error
    assert "503" in error


def test_ctrl_c_leaves_the_job_running(submitted: Submitted, server: Server) -> None:
    def interrupt(method: str, path: str) -> None:
        if path.endswith("/logs"):
            os.kill(os.getpid(), signal.SIGINT)

    server.refuse = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = submitted("--out", "/shared/run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "the job goes on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--out", "runs/x"), "--out runs/x: give the absolute path"),
        (("--out", "/x", "--data", "logs"), "--data logs: give the absolute path"),
        (("--out", "/x", "--cache", "."), "--cache .: give the absolute path"),
    ],
)
def test_a_path_of_this_machine_is_refused(
    submitted: Submitted, server: Server, arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = submitted(*arguments)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert not server.submitted


def test_a_bad_study_is_not_sent(submitted: Submitted, server: Server) -> None:
    Path("study.toml").write_text(study_text(max_steps="max_steps = 0"))
    code, _, err = submitted("--out", "/shared/run")
    assert code == 2
    assert "training.max_steps: must be at least 1" in err
    assert not server.submitted


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:1", "nothing answers there"),
        ("127.0.0.1:8265", "write http://HOST:8265"),
        ("ray://127.0.0.1:10001", "write http://HOST:8265"),
        ("http://", "write http://HOST:8265"),
        ("http://host:port", "write http://HOST:8265"),
        ("auto", "write http://HOST:8265"),
    ],
)
def test_an_address_without_a_job_server_is_named(
    submitted: Submitted, address: str, expected: str
) -> None:
    code, _, err = submitted("--out", "/shared/run", address=address)
    assert code == 2
    assert f"--address {address}: {expected}" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "refusal", "expected"),
    [
        ("/api/version", 404, "no Ray job server answers there: Version check returned 404"),
        ("/api/version", 200, "no Ray job server answers there"),
        ("/api/version", 401, "Authentication required: <html>no</html>: set RAY_AUTH_MODE=token"),
        ("/api/jobs/", 500, "the job server failed: Request failed with status code 500"),
    ],
)
def test_a_server_that_refuses_is_named(
    submitted: Submitted, server: Server, path: str, refusal: int, expected: str
) -> None:
    server.refuse = lambda method, asked: refusal if asked == path else None
    code, out, err = submitted("--out", "/shared/run")
    assert (code, out) == (2, "")
    assert f"--address {server.address}: {expected}" in err.splitlines()[-1]
    assert "Traceback" not in err
