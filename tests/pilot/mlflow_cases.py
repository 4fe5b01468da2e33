"""MLflow pointed at a store for a while: its calls without a client go by one global."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest


@contextmanager
def tracking_uri(uri: str) -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:  # MLflow hands it to child processes this way, too
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)
