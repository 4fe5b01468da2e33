"""Whether MLflow's own client may read a store, and what it means when it cannot.

That something answers at an address, which `tracking_server` tells, does not make it an MLflow
server, nor one that takes what is sent.
"""

import logging
import warnings

import sma_pilot.mlflow_environment  # noqa: F401  (before MLflow)

with warnings.catch_warnings():
    # Of its own type hints and of its own database code: nothing that a user could mend.
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

from sma_pilot.errors import TrackingError
from sma_pilot.tracking_server import printable, require_answer

_REFUSALS = {
    401: "it refuses who asks (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, to what it takes",
    403: "it does not allow this to who asks (403): have its keeper let you read and write "
    "experiments and registered models",
}
_MOST = 300  # characters of what MLflow says


def require_access(store: str) -> None:
    """Raise TrackingError unless the MLflow server at `store` answers and can be read.

    Asked before hours of work, and with the name and password that MLflow will use after them.
    """
    require_answer(store)
    quieten()
    try:
        MlflowClient(tracking_uri=store).search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        where = printable(store, store)
        if _status(error) in _REFUSALS:
            raise TrackingError(f"{where}: {meaning_of(error, store)}") from error
        raise TrackingError(
            f"{where}: what answers there does not speak as an MLflow server: "
            f"{meaning_of(error, store)}; mend the address"
        ) from error


def meaning_of(error: Exception, store: str) -> str:
    """Return what went wrong in a line, without the password that an address may hold."""
    status = _status(error)
    if status in _REFUSALS:
        return _REFUSALS[status]
    said = str(error).partition(" Response body:")[0]  # of what is no MLflow server: a whole page
    text = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return printable(text if len(text) <= _MOST else f"{text[:_MOST]}…", store).rstrip(".")


def quieten() -> None:
    """Keep back what MLflow and its database code say of themselves."""
    for noisy in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _status(error: Exception) -> int | None:
    return error.get_http_status_code() if isinstance(error, MlflowException) else None
