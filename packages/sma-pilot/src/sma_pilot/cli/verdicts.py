"""Commands on a judged run: its page, its record in MLflow, its signature; and the UI of all."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sma_pilot.cli.base import (
    AsJson,
    ExitByVerdict,
    RunPath,
    StageName,
    TrackingUri,
    app,
    print_standing,
    progress_shown,
    say,
    store_for,
)
from sma_pilot.errors import PilotError

CHANGED = 1

StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the MLflow store, where it is not beside the run folder.",
        metavar="DIR",
    ),
]


def _folder(run: Path, stage: str | None) -> Any:
    """Open the folder of a run, or of one of its stages."""
    from sma_pilot.run_folder import RunFolder

    folder = RunFolder.open(run)
    if stage is None:
        return folder
    folder.load_plan().stage(stage)
    return folder.at(stage)


@app.command()
def status(run: RunPath, as_json: AsJson = False, exit_code: ExitByVerdict = False) -> None:
    """Tell how a pilot in stages stands: what each came to, and what comes next.

    Example: `sma-pilot status runs/services-1a2b3c4d`
    """
    from sma_pilot import pilot

    folder = _folder(run, None)
    print_standing(folder, pilot.standing(folder), as_json, exit_code)


@app.command()
def report(
    run: RunPath,
    stage: StageName = None,
    page: Annotated[Path | None, typer.Option("--page", help="Where to write the page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the one-page HTML report of a judged run.

    Example: `sma-pilot report runs/smd-1a2b3c4d`
    """
    from sma_pilot import pilot

    written = pilot.report(_folder(run, stage), page)
    typer.echo(json.dumps({"report": str(written)}) if as_json else str(written))


@app.command()
def track(
    run: RunPath,
    out: StoreFolder = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Record a judged run in MLflow; a run that is there already is brought up to date.

    Example: `sma-pilot track runs/smd-1a2b3c4d`
    """
    from sma_pilot import pilot

    folder = _folder(run, None)
    run_id = pilot.track(folder, store_for(tracking_uri, out, folder.root.resolve().parent))
    typer.echo(json.dumps({"mlflow_run": run_id}) if as_json else run_id)


@app.command()
def sign(
    run: RunPath,
    decision: Annotated[
        Literal["go", "no-go"], typer.Option("--decision", help="What was decided.")
    ],
    by: Annotated[str, typer.Option("--by", help="Who decided.", metavar="NAME")],
    reason: Annotated[str, typer.Option("--reason", help="Why, in a sentence.", metavar="TEXT")],
    override: Annotated[
        bool, typer.Option("--override", help="Sign against the verdict; it shows for ever.")
    ] = False,
    stage: StageName = None,
    out: StoreFolder = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Sign a decision on a judged run, and record it in MLflow and its model registry.

    Example: `sma-pilot sign runs/smd-1a2b3c4d --decision go --by "Ada Berg" --reason "As judged."`
    """
    from sma_pilot import pilot

    folder = _folder(run, stage)
    store = store_for(tracking_uri, out, folder.root.resolve().parent)
    with progress_shown() as progress:
        signed = pilot.sign(folder, decision, by, reason, override=override, on_progress=progress)
    try:
        run_id, failure = pilot.track(folder, store), None
    except PilotError as error:
        run_id, failure = None, error
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "number": signed.number,
                    "decision": signed.decision,
                    "verdict": signed.verdict,
                    "override": signed.override,
                    "file": str(folder.decisions / signed.file_name),
                    "sha256": signed.sha256,
                    "mlflow_run": run_id,
                }
            )
        )
    else:
        against = f", AGAINST the verdict {signed.verdict}" if signed.override else ""
        typer.echo(f"signed   {signed.decision} by {signed.by}{against}")
        typer.echo(f"record   {folder.decisions / signed.file_name}")
        typer.echo(f"report   {folder.report}")
        say("\nKeep this line elsewhere: it finds out if the records themselves are replaced.")
        named = "" if stage is None else f"--stage {stage} "
        say(f"sma-pilot verify {run} {named}--record {signed.sha256}")
    if failure is not None:
        say("\nThe decision is signed, but MLflow does not show it yet:")
        raise failure


@app.command()
def verify(
    run: RunPath,
    record: Annotated[
        str | None,
        typer.Option("--record", help="Hash of a record, as `sign` printed it.", metavar="SHA256"),
    ] = None,
    stage: StageName = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether any file of a signed run was changed since; exits with 1 when one was.

    So it does when a look of its monitor was.

    Of a pilot in stages, all that were signed are verified, or the one that is named.

    Example: `sma-pilot verify runs/smd-1a2b3c4d`
    """
    from sma_pilot import pilot
    from sma_pilot.run_folder import RunFolder

    # Not `_folder`: a plan that was changed is for `verify` to tell.
    folder = RunFolder(run) if stage is None else RunFolder(run).at(stage)
    with progress_shown() as progress:
        found = pilot.verify(folder, record, progress)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())
    if not found.is_intact or found.look_faults:
        raise typer.Exit(CHANGED)


@app.command()
def ui(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the MLflow store; runs unless told.", metavar="DIR"),
    ] = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option(help="Address to bind; loopback unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI on the store that `run` and `demo` write; of a server, tell its pages.

    Example: `sma-pilot ui --port 5001`
    """
    from sma_pilot.store import database_of
    from sma_pilot.tracking_server import pages_of, require_answer
    from sma_pilot.ui import serve_ui

    store = store_for(tracking_uri, out, Path("runs"))
    database = database_of(store)
    if database is not None:
        serve_ui(database, port=port, host=host)
    else:
        require_answer(store)
        say("pilots are recorded in a server, which shows them itself:")
        typer.echo(pages_of(store))
