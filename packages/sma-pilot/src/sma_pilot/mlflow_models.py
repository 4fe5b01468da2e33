"""Models that MLflow keeps: fetched into a folder, and opened from there.

To open one is to run its maker's code. Nothing here asks whether the maker is trusted; the plan has
said so before.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sma_pilot.mlflow_environment  # noqa: F401  (before MLflow)

with warnings.catch_warnings():
    # Of its own type hints and of its own database code: nothing that a user could mend.
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from sma_pilot.errors import TrackingError
from sma_pilot.store import check_database, database_of

CARD = "MLmodel"
"""The file that makes a folder a model."""


def fetch_model(uri: str, store: str, folder: Path) -> None:
    """Copy the model that a store knows by `uri` into `folder`, which is not there yet.

    Raises
    ------
    TrackingError
        The store cannot be reached or knows no such model.
    """
    database = database_of(store)
    if database is not None:
        check_database(database)
    # A client and not MLflow's own look-up, which asks the store that one global names.
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    with _quiet():
        try:
            location = _locate(client, uri)
            repository = get_artifact_repository(location, tracking_uri=store, registry_uri=store)
            folder.mkdir(parents=True)
            repository.download_artifacts("", dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise TrackingError(f"{store}: {uri!r} cannot be fetched: {error}") from error


def _locate(client: MlflowClient, uri: str) -> str:
    """Return where the files of a model are that a ``models:`` or ``runs:`` URI names."""
    scheme, _, name = uri.partition(":/")
    if scheme == "runs":
        run_id, _, path = name.partition("/")
        return f"{client.get_run(run_id).info.artifact_uri}/{path}"
    if "@" in name:
        version = client.get_model_version_by_alias(*name.split("@", 1))
        location = client.get_model_version_download_uri(version.name, version.version)
    elif "/" in name:
        location = client.get_model_version_download_uri(*name.split("/", 1))
    else:
        location = uri
    logged = location.removeprefix("models:/")
    return client.get_logged_model(logged).artifact_location if logged != location else location


def open_model(folder: Path) -> Any:
    """Open a model of any flavour through its pyfunc interface: ``predict(rows)``.

    Raises
    ------
    TrackingError
        It cannot be opened, for whatever reason its own code has.
    """
    keeps_bytecode = sys.dont_write_bytecode
    with _quiet():
        try:
            # Its folder is what was hashed, and stays that.
            sys.dont_write_bytecode = True
            return load_model(str(folder), suppress_warnings=True)
        except Exception as error:
            raise TrackingError(
                f"{folder}: cannot be opened as an MLflow model: {type(error).__name__}: {error}"
            ) from error
        finally:
            sys.dont_write_bytecode = keeps_bytecode


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what MLflow says of itself, and its progress bars."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
