"""Record in an MLflow server of the company's: which one it is, and whether it is there.

A server is asked for an answer before anything is sent to it, since MLflow itself would try for
minutes. Passwords in an address are never shown.
"""

import os
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from sma_pilot.errors import TrackingError
from sma_pilot.store import database_of

VARIABLE = "MLFLOW_TRACKING_URI"
"""The environment variable by which MLflow, too, finds a server."""
_DATABASES = ("postgresql", "mysql", "mssql", "mariadb", "oracle")
_ANSWER_SECONDS = 10.0
# What stands before a server says so when the server is not there.
_AWAY = (502, 503, 504)


def tracking_uri(told: str | None) -> str | None:
    """Return the address that was told, else that of the environment; None without either.

    Raises
    ------
    TrackingError
        It is neither that of a server nor that of an SQLite database.
    """
    name, uri = ("--tracking-uri", told) if told is not None else (VARIABLE, os.getenv(VARIABLE))
    if told is None and not uri:
        return None
    uri = uri or ""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _DATABASES:
        raise TrackingError(
            f"{name} {printable(uri, uri)}: a database has no room for files; give the address of "
            "the MLflow server that keeps its runs there, such as http://mlflow:5000"
        )
    database = database_of(uri)
    if not (_is_server(uri) if database is None else database.name):
        raise TrackingError(
            f"{name} {printable(uri, uri)}: give the address of an MLflow server, such as "
            "http://mlflow:5000, or sqlite:///PATH/mlflow.db"
        )
    return uri


def _is_server(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, half of an address in brackets
        return False


def require_answer(uri: str) -> None:
    """Raise TrackingError unless something answers at the address of a server."""
    if database_of(uri) is not None:
        return
    parts = urlsplit(uri)
    path = f"{parts.path.rstrip('/')}/health"
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path)
    try:
        urllib.request.build_opener().open(urlunsplit(place), timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in _AWAY:  # not everyone may ask for its health
            return
        reason: object = error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # MLflow has settings of its own for these
            return
        reason = error.reason
    except (OSError, HTTPException) as error:
        reason = error
    else:
        return
    raise TrackingError(
        f"{printable(uri, uri)}: no MLflow server answers there: {reason}; start it or mend the "
        f"address. Without --tracking-uri and {VARIABLE} the record goes to the --out folder"
    )


def pages_of(uri: str) -> str:
    """Return where a browser finds the pages of the server at `uri`, without a password."""
    parts = urlsplit(uri)
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"))
    return f"{urlunsplit(place)}/#/experiments?workflowType=machine_learning"


def printable(text: str, uri: str) -> str:
    """Return a text in which an address may stand without the address's password."""
    user = uri.partition("://")[2].partition("/")[0].rpartition("@")[0]
    return text.replace(f"{user}@", f"{user.partition(':')[0]}:***@") if ":" in user else text
