"""The program and what its commands share: options, progress, and where things are said."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sma_pilot.errors import PilotError

app = typer.Typer(
    name="sma-pilot",
    help="Replay historical logs through a sparse model and its incumbent; judge with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

PlanFile = Annotated[Path, typer.Argument(help="The plan, a pilot.toml.", metavar="PLAN")]
DataFolder = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="SMA_DATA",
        help="Where the plan's relative log paths start.",
        metavar="DIR",
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Where run folders and the MLflow store go.",
        metavar="DIR",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document alone on stdout.")]
EXIT_CODES = {"go": 0, "no-go": 10, "inconclusive": 20}
PENDING = 30
ExitByVerdict = Annotated[
    bool,
    typer.Option(
        "--exit-code",
        help="Exit 0 on go, 10 on no-go, 20 on inconclusive, 30 while a stage waits to be signed.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow server to record in, such as https://mlflow.example.com; "
        "$MLFLOW_TRACKING_URI unless told, else the store in the --out folder.",
        metavar="URI",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Score the offline scenario on a Ray cluster: auto, host:port of its head, "
        "ray://host:port, or local to start one here. Times are taken on this machine alone.",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        min=1,
        help="How many shards; as many as run at once unless told. The numbers are the same.",
    ),
]
StageName = Annotated[
    str | None,
    typer.Option("--stage", help="The stage, of a pilot in stages.", metavar="NAME"),
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]


@contextmanager
def progress_shown() -> Iterator[Any]:
    """Yield what long work reports its progress to."""
    from sma_pilot.progress import make_progress

    progress = make_progress()
    try:
        yield progress
    finally:
        progress.close()


def print_standing(run: Any, standing: Any, as_json: bool, exit_code: bool) -> None:
    """Print how a pilot in stages stands, and exit by it if so asked."""
    if as_json:
        typer.echo(json.dumps(standing.to_dict(), indent=2, allow_nan=False))
    else:
        from sma_pilot.report.stages import standing_text

        typer.echo(standing_text(standing, str(run.path)))
        if run.report.exists():
            typer.echo(f"\nreport   {run.report}")
    if exit_code:
        waits = standing.current.state == "pending"
        raise typer.Exit(PENDING if waits else EXIT_CODES[standing.verdict])


def sharding_over(address: str | None, shards: int | None) -> Any:
    """Return how to split a replay, None for not at all; what is missing is said at once."""
    if address is None:
        if shards is not None:
            raise PilotError("--shards: say over which cluster with --address, such as local")
        return None
    from sma_pilot.replay.cluster import sharding_over  # needs an extra, and takes seconds

    return sharding_over(address, shards)


def store_for(uri: str | None, out: Path | None, beside: Path) -> str:
    """Return the address of the MLflow store to record in.

    Parameters
    ----------
    uri : str or None
        As told by ``--tracking-uri``.
    out : Path or None
        A folder whose store was asked for.
    beside : Path
        The folder whose store it is when nothing was asked for, not by the environment either.
    """
    from sma_pilot.tracking_server import tracking_uri

    if out is not None:
        if uri is not None:
            raise PilotError("--out and --tracking-uri name two stores: give one of them")
        return store_in(out)
    return tracking_uri(uri) or store_in(beside)


def store_in(out: Path) -> str:
    """Return the address of the MLflow store in `out`."""
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def say(text: str) -> None:
    """Print on stderr."""
    typer.echo(text, err=True)


def write(path: Path, text: str) -> None:
    """Write a file that the user named."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PilotError(f"{path}: cannot be written: {error.strerror}") from error
