"""Judged runs to sign and to spoil, and an MLflow store to copy."""

import functools
from pathlib import Path
from typing import Any

import pytest
from tests.pilot.decision_cases import copied, make_runs, run_typed

from sma_pilot import mlflow_runs
from sma_pilot.run_folder import RunFolder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``mlflow.db`` without experiments; to make one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow_runs.make_database(path)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """A run of each verdict; nobody writes to them."""
    return make_runs(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def runs(judged: dict[str, RunFolder], tmp_path: Path) -> dict[str, RunFolder]:
    """Copies of them, to sign and to spoil."""
    return {kind: copied(run, tmp_path / "runs") for kind, run in judged.items()}


@pytest.fixture
def run(judged: dict[str, RunFolder], tmp_path: Path) -> RunFolder:
    """A copy of the run that was judged a go."""
    return copied(judged["go"], tmp_path / "runs")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return functools.partial(run_typed, monkeypatch, capsys)
