"""One Ray for all tests of the laboratory: starting one takes longer than most of them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiments.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Start a Ray of a head and two nodes with a processor each, joined by this process."""
    cluster = LocalCluster(nodes=2)
    yield cluster
    cluster.close()
    sys.stdout.flush()


@pytest.fixture(scope="session")
def ray_address(cluster: LocalCluster) -> str:
    """Return the address of the cluster that this process has joined."""
    return cluster.address


@pytest.fixture
def lose_node(cluster: LocalCluster) -> Iterator[Callable[[int], None]]:
    """Kill the node that a process runs on, with all on it; another comes after the test."""
    lost: list[int] = []

    def lose(pid: int) -> None:
        cluster.lose(pid)
        lost.append(pid)

    yield lose
    for _ in lost:
        cluster.add()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an MLflow store without experiments, which takes seconds, to be copied."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """Return the address of an MLflow store of the test's own."""
    shutil.copy2(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
