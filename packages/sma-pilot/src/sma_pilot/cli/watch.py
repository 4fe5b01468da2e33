"""The command that watches a signed pilot: what came since, held against the verdict."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sma_pilot.cli.base import (
    AsJson,
    DataFolder,
    OutFolder,
    PlanFile,
    TrackingUri,
    app,
    progress_shown,
    say,
    store_for,
)
from sma_pilot.errors import PilotError

EXIT_CODES = {"keep": 0, "fall back": 10, "re-pilot": 20}


@app.command()
def monitor(
    plan: PlanFile,
    new: Annotated[
        list[str],
        typer.Option(
            "--new",
            help="Log files or patterns with what came since; may be given more than once.",
            metavar="LOG",
        ),
    ],
    data: DataFolder = Path(),
    out: OutFolder = Path("runs"),
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit 0 on keep, 20 on re-pilot, 10 on fall back."),
    ] = False,
) -> None:
    """After a signed go, look at what came since: keep the candidate, pilot again, or fall back.

    The same log again, once its labels came, has its look taken anew.

    Example: `sma-pilot monitor experiments/pilots/smd.toml --new logs/march.csv`
    """
    from sma_pilot import pilot
    from sma_pilot.plan import load_plan
    from sma_pilot.report.monitor import looks_document, looks_text
    from sma_pilot.run_folder import RunFolder

    frozen = load_plan(plan)
    store = store_for(tracking_uri, None, out)
    run = RunFolder.of(frozen, out)
    with progress_shown() as progress:
        found = pilot.monitor(frozen, run, new, data, progress)
    failure = None
    try:
        pilot.track_looks(run, store)
    except PilotError as error:
        failure = error
    if as_json:
        document = looks_document(frozen, found)
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        typer.echo(looks_text(frozen, found))
        typer.echo(f"\npage     {run.monitor_page}")
    if failure is not None:
        say("\nThe looks are on disk, but MLflow does not show them all yet:")
        raise failure
    if exit_code:
        raise typer.Exit(EXIT_CODES[found.standing.recommendation])
