"""What every test shares: shape checks, quiet libraries, the real logs where they are."""

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from tests.core.shapes import unchecked_shapes

if TYPE_CHECKING:
    from tests.mlflow_server import MLflowServer

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # nobody's own server is written to
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread is enough for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shapes in signatures are checked at test time. The hook must stand before the first import of
# sma_core; a machine without beartype (a bare GPU box) still runs the tests, unchecked.
if find_spec("beartype") is not None:
    jaxtyping.install_import_hook(["sma_core"], "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def shapes_checked_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check shapes in the core's own tests: those of what is built on it would do so again."""
    with nullcontext() if "core" in request.path.parts else unchecked_shapes():
        yield


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_settled() -> None:
    """Leave the libraries' million objects out of collections: replays collect by the hundred."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Thaw them, so that the end of the process finds and frees them."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """Folder of the public logs (smd/, asd/, services/, hdfs/), named by SMA_DATA."""
    folder = os.environ.get("SMA_DATA")
    if not folder or not (Path(folder) / "smd").is_dir():
        pytest.skip("the public logs are not here: set SMA_DATA to the folder that holds smd/")
    return Path(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[MLflowServer]":
    """Start a real MLflow server; it takes some ten seconds."""
    from tests.mlflow_server import MLflowServer  # a bare GPU box has this file alone

    server = MLflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()
