"""Recording in an MLflow server of the company's: which store it is, and a server that is away."""

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.pilot.fabricated_run import make_run
from typer.testing import CliRunner

from sma_pilot import cli, pilot
from sma_pilot.cli import steps
from sma_pilot.errors import PilotError, RunError, TrackingError
from sma_pilot.mlflow_access import meaning_of
from sma_pilot.run_folder import RunFolder
from sma_pilot.store import store_uri
from sma_pilot.tracking_server import printable, require_answer, tracking_uri

SERVER = "http://mlflow.example.com:5000"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("judged"), days=4)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where pilots would have been recorded."""
    asked: list[str] = []

    def track(run: RunFolder, store: str) -> str:
        asked.append(store)
        return "run-id"

    monkeypatch.setattr(pilot, "track", track)
    return asked


@pytest.fixture
def answering() -> Iterator[Any]:
    """A server of one status, and the paths it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        status, paths, uri = 200, [], ""

        def do_GET(self) -> None:
            self.paths.append(self.path)
            self.send_response(self.status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Handler.uri = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def ask(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


# Which store it is.


def test_the_option_goes_before_the_environment_and_both_before_the_folder(
    kept: RunFolder, stores: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(kept.path)
    beside = store_uri(kept.path.parent / "mlflow.db")
    ask("track", folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other")
    ask("track", folder)
    ask("track", folder, "--tracking-uri", SERVER)
    ask("track", folder, "--out", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    ask("track", folder)
    other = store_uri(tmp_path / "mlflow.db")
    assert stores == [beside, "https://other", SERVER, other, beside]


def test_two_stores_at_once_are_refused(kept: RunFolder, stores: list[str]) -> None:
    done = ask("track", str(kept.path), "--out", "x", "--tracking-uri", SERVER)
    assert isinstance(done.exception, PilotError)
    assert "--out and --tracking-uri name two stores" in str(done.exception)
    assert not stores


def test_a_signature_goes_to_the_server(
    kept: RunFolder, stores: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[str] = []

    def sign(run: RunFolder, decision: str, by: str, reason: str, **_: Any) -> Any:
        signed.append(by)
        return SimpleNamespace(
            decision=decision, by=by, override=False, file_name="0001.json", sha256="0" * 64
        )

    monkeypatch.setattr(pilot, "sign", sign)
    words = ("sign", str(kept.path), "--decision", "go", "--by", "Ada", "--reason", "As judged.")
    done = ask(*words, "--tracking-uri", "http://")
    assert isinstance(done.exception, TrackingError)
    assert not signed, "signed before it was known where to record it"
    assert ask(*words, "--tracking-uri", SERVER).exit_code == 0
    assert (signed, stores) == (["Ada"], [SERVER])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "give the address of an MLflow server"),
        ("runs", "give the address of an MLflow server"),
        ("file:///tmp/mlruns", "give the address of an MLflow server"),
        ("http://", "give the address of an MLflow server"),
        ("http://[::1", "give the address of an MLflow server"),
        ("http://host:port", "give the address of an MLflow server"),
        ("http://host:99999", "give the address of an MLflow server"),
        ("sqlite:///", "give the address of an MLflow server"),
        ("databricks", "give the address of an MLflow server"),
        ("postgresql://u:secret@db/mlflow", "a database has no room for files"),
        ("postgresql+psycopg2://u:secret@db/mlflow", "a database has no room for files"),
        ("mysql://db/mlflow", "a database has no room for files"),
    ],
)
def test_what_is_no_store_is_refused_by_name(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrackingError, match=message) as told:
        tracking_uri(uri)
    assert str(told.value).startswith(f"--tracking-uri {uri.replace('secret', '***')}")
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match=message) as told:
            tracking_uri(None)
        assert str(told.value).startswith("MLFLOW_TRACKING_URI ")
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("uri", [SERVER, "https://u:p@host/mlflow/", "sqlite:////x/y.db"])
def test_what_is_a_store_is_taken_as_it_stands(uri: str) -> None:
    assert tracking_uri(uri) == uri


def test_a_password_is_not_shown() -> None:
    uri = "https://ada:s3:cret@host/x"
    assert printable(f"{uri} is away", uri) == "https://ada:***@host/x is away"
    assert printable("ada: none", "https://ada@host") == "ada: none"
    assert printable("a/b:c@d", "https://host/b:c@d") == "a/b:c@d"


# A server that is away.


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_server_that_answers_is_there(answering: Any, status: int) -> None:
    answering.status = status
    require_answer(answering.uri)
    require_answer(answering.uri.replace("//", "//ada:secret@") + "/mlflow/")
    assert answering.paths[-2:] == ["/health", "/mlflow/health"]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_who_only_stands_before_it_is_not_the_server(answering: Any, status: int) -> None:
    answering.status = status
    with pytest.raises(TrackingError, match=f"no MLflow server answers there: .*{status}"):
        require_answer(answering.uri)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"it refuses who asks \(401\): set MLFLOW_TRACKING_USERNAME"),
        (403, r"it does not allow this to who asks \(403\)"),
        (404, "does not speak as an MLflow server: .*404 != 200; mend the address"),
    ],
)
def test_a_server_that_refuses_is_told_of_before_a_pilot_begins(
    answering: Any, status: int, message: str, tmp_path: Path
) -> None:
    answering.status = status
    uri = answering.uri.replace("//", "//ada:secret@")
    out = tmp_path / "runs"
    done = ask("run", str(tmp_path / "pilot.toml"), "--out", str(out), "--tracking-uri", uri)
    assert isinstance(done.exception, TrackingError)
    assert re.search(message, str(done.exception))
    assert "secret" not in str(done.exception)
    assert not out.exists()


def test_what_mlflow_says_is_a_line_without_a_page_or_a_password() -> None:
    error = OSError("http://ada:secret@host\nis\x1b[31m away. Response body: '<html>'")
    assert meaning_of(error, "http://ada:secret@host") == "http://ada:***@host is [31m away"
    assert len(meaning_of(OSError("x" * 5000), SERVER)) < 400


def test_of_a_server_the_ui_is_its_own(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{answering.uri.replace('//', '//a:b@')}/mlflow/")
    done = ask("ui")
    pages = f"{answering.uri}/mlflow/#/experiments?workflowType=machine_learning"
    assert (done.exit_code, done.stdout) == (0, f"{pages}\n")
    done = ask("ui", "--out", "absent")
    assert "no MLflow store here yet" in str(done.exception)


@pytest.fixture
def nobody() -> str:
    """An address on which nothing listens."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://ada:secret@127.0.0.1:{server.server_port}"


def test_a_server_that_is_away_is_told_of_at_once(
    nobody: str, kept: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    plan = tmp_path / "pilot.toml"
    for words in (
        ("run", str(plan), "--out", str(out), "--tracking-uri", nobody),
        ("track", str(kept.path), "--tracking-uri", nobody),
    ):
        begun = time.monotonic()
        done = ask(*words)
        assert time.monotonic() - begun < 60, "MLflow tried for minutes"
        assert isinstance(done.exception, TrackingError)
        assert "no MLflow server answers there: [Errno" in str(done.exception)
        assert "secret" not in str(done.exception)
    assert not out.exists()


def test_a_server_that_goes_away_costs_no_verdict(
    kept: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judges_and_fails(*_: Any) -> None:
        raise TrackingError("nobody there; run `sma-pilot track` again")

    monkeypatch.setattr(steps, "_open", lambda plan, out: (kept.load_plan(), kept))
    monkeypatch.setattr(pilot, "run_pilot", judges_and_fails)
    done = ask("run", "pilot.toml", "--exit-code")
    assert str(done.exception) == "nobody there; run `sma-pilot track` again"
    assert f"result   {kept.result}" in done.output
    assert "The pilot is judged, but MLflow does not show it yet:" in done.output
    monkeypatch.setattr(steps, "_open", lambda plan, out: (kept.load_plan(), RunFolder(Path())))
    assert isinstance(ask("run", "pilot.toml").exception, RunError), "there is no verdict to print"
