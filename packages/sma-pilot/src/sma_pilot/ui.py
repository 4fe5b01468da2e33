"""MLflow's server on the embedded store: started, waited for, and ended with all its processes.

MLflow runs as a program of its own here; `tracking` and `mlflow_runs` stay the only modules that
import it.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any

from sma_pilot.errors import TrackingError
from sma_pilot.store import artifacts_beside, check_database, store_uri
from sma_pilot.tracking_server import pages_of

_START_SECONDS = 120.0  # a cold start on a slow disk takes some ten
_STOP_SECONDS = 5.0
_LOG_TAIL = 2000
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve_ui(
    db: Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve MLflow's pages on the store at `db` until interrupted.

    Parameters
    ----------
    db : Path
        The SQLite database that `sma_pilot.tracking` writes.
    port : int
    host : str
        Address to listen on. MLflow asks nobody for a password: any other than loopback lets
        everybody who reaches it read and change the store.
    say : callable, optional
        Takes each line for the user; prints to stderr by default.

    Raises
    ------
    TrackingError
        When there is no store, the port is taken, or the server does not come up.
    """
    say = say or _print
    check_database(db)
    _require_free(host, port)
    if not _is_loopback(host):
        say(f"warning: whoever reaches {host}:{port} can read and change this store")
    say("starting MLflow; this takes some ten seconds")
    with _ended_by_signals(), _server(db, host, port) as (server, log):
        try:
            _wait_until_ready(server, log, host, port)
            root = f"http://{_address(host)}:{port}"
            say(f"MLflow shows {db} at\n\n    {pages_of(root)}\n")
            say("Ctrl-C ends it")
            code = server.wait()
        except KeyboardInterrupt:
            say("ended")
        else:
            raise TrackingError(f"MLflow's server ended by itself ({code}):\n{_tail(log)}")


@contextmanager
def _server(db: Path, host: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run the server in a process group of its own, and leave none of the group behind."""
    artifacts = artifacts_beside(db).as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    command += ["--backend-store-uri", store_uri(db), "--default-artifact-root", artifacts]
    # Runs name their artifacts by path, so nothing needs to be handed through for clients.
    command += ["--no-serve-artifacts"]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # another process, and of no use here
    }
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(  # noqa: S603 - no shell, and nothing of a log in it
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=db.resolve().parent,
            start_new_session=True,
        )
        try:
            yield server, log
        finally:
            for name in _SIGNALS:
                # A second Ctrl-C must not stop the ending halfway.
                signal.signal(name, signal.SIG_IGN)
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, and end it by force when it does not."""
    for force in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, force)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and _group_lives(server):
            time.sleep(0.05)
    server.wait()


def _group_lives(server: subprocess.Popen[bytes]) -> bool:
    server.poll()  # takes the ended leader off the list
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the server as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, interrupt) for name in _SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _wait_until_ready(
    server: subprocess.Popen[bytes], log: IO[bytes], host: str, port: int
) -> None:
    # Not through a proxy that the environment may name: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"MLflow's server did not come up:\n{_tail(log)}")
        try:
            with opener.open(f"http://{_address(host)}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(
        f"MLflow's server did not answer within {_START_SECONDS:.0f} s:\n{_tail(log)}"
    )


def _require_free(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a connection that just closed must not count as a server.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TrackingError(
                f"port {port} of {host} is taken; end what listens there, or give another --port"
            ) from error
        raise TrackingError(
            f"cannot listen on port {port} of {host}: {error.strerror}; give another --host or "
            "--port"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str) -> str:
    """Return where a browser on this machine finds a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LOG_TAIL))
    return log.read().decode(errors="replace").strip()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
