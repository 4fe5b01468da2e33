"""The embedded MLflow store: one SQLite file, and the artifacts in a folder beside it."""

from pathlib import Path

from sma_pilot.errors import TrackingError

_SCHEME = "sqlite:///"
_MAGIC = b"SQLite format 3\0"


def store_uri(db: Path) -> str:
    """Return the address by which MLflow knows the database at `db`."""
    return f"{_SCHEME}{db.resolve()}"


def database_of(uri: str) -> Path | None:
    """Return the SQLite database that `uri` names; None when it names a server."""
    return Path(uri.removeprefix(_SCHEME)) if uri.startswith(_SCHEME) else None


def artifacts_beside(db: Path) -> Path:
    """Return the folder of the artifacts: beside the database, never where a command runs."""
    return db.resolve().parent / "mlflow-artifacts"


def check_database(db: Path) -> None:
    """Raise TrackingError unless there is a SQLite database at `db`.

    MLflow would open an absent file as an empty store, and retry a damaged one for minutes.
    """
    try:
        with db.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise TrackingError(
            f"{db}: no MLflow store here yet; run `sma-pilot demo` or `sma-pilot run` first, or "
            "give the folder that they wrote to with --out"
        ) from error
    except OSError as error:
        raise TrackingError(f"{db}: cannot be read: {error.strerror}") from error
    if head != _MAGIC:
        raise TrackingError(
            f"{db}: not an SQLite database; move it away and record the runs again with "
            "`sma-pilot track`"
        )
