"""The command line: parses, calls `sma_pilot.pilot`, prints. No work is done here.

Results go to stdout, everything else to stderr. Exit codes: 0 finished, 2 bad input, 130 stopped;
with ``--exit-code`` 0 go, 10 no-go, 20 inconclusive.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sma_pilot.errors import PilotError, PlanError

app = typer.Typer(
    name="sma-pilot",
    help="Replay historical logs through a sparse model and its incumbent; judge with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

EXIT_CODES = {"go": 0, "no-go": 10, "inconclusive": 20}

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
ExitByVerdict = Annotated[
    bool, typer.Option("--exit-code", help="Exit 0 on go, 10 on no-go, 20 on inconclusive.")
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]


@contextmanager
def _progress() -> Iterator[Any]:
    from sma_pilot.progress import make_progress

    progress = make_progress()
    try:
        yield progress
    finally:
        progress.close()


def _store(out: Path) -> str:
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PilotError(f"{path}: cannot be written: {error.strerror}") from error


def _print_result(run: Any, result: Any, as_json: bool, exit_code: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    else:
        from sma_pilot.report.text import verdict_text

        typer.echo(verdict_text(result))
        if run.report.exists():
            typer.echo(f"\nreport   {run.report}")
        typer.echo(f"result   {run.result}")
    if exit_code:
        raise typer.Exit(EXIT_CODES[result.verdict])


def _open(plan_file: Path, out: Path) -> tuple[Any, Any]:
    from sma_pilot.plan import load_plan
    from sma_pilot.run_folder import RunFolder

    plan = load_plan(plan_file)
    run = RunFolder.create(plan, out)
    _say(f"plan {plan.name} {plan.digest[:8]}, folder {run.path}")
    return plan, run


def _done(step: str, run: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"step": step, "run": str(run.path), "folder": str(folder)}))
    else:
        typer.echo(f"{step}: {folder}")


@app.command()
def init(
    log: Annotated[
        list[Path], typer.Argument(help="Log files, folders or patterns: CSV, Parquet or NDJSON.")
    ],
    time: Annotated[str | None, typer.Option(help="Column of the timestamp.")] = None,
    entity: Annotated[
        str | None, typer.Option(help='Column that names the machine; "" if there is none.')
    ] = None,
    label: Annotated[
        str | None, typer.Option(help='Column that marks failures; "" if there is none.')
    ] = None,
    data: DataFolder = Path(),
    plan: Annotated[
        Path, typer.Option("--plan", help="Where to write the plan; - prints it.")
    ] = Path("pilot.toml"),
    as_json: AsJson = False,
) -> None:
    """Look at a log and write a commented plan, its paths relative to the data folder.

    Example: `sma-pilot init logs/*.csv --time timestamp --entity machine --label failure`
    """
    from sma_pilot.init import init_plan

    printed = plan == Path("-")
    if not printed and plan.exists():
        raise PlanError(f"{plan}: is there already; give another name with --plan")
    with _progress() as progress:
        text = init_plan(
            log, time=time, entity=entity, label=label, data_dir=data, on_progress=progress
        )
    if not printed:
        _write(plan, text)
        _say(f"wrote {plan}; read its comments, then: sma-pilot check {plan}")
    if as_json:
        typer.echo(json.dumps({"plan": text}))
    elif printed:
        typer.echo(text, nl=False)


@app.command()
def check(
    plan: PlanFile,
    data: DataFolder = Path(),
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the findings as a page here, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a log against its plan: schema, gaps, order, duplicates, labels, leakage.

    Exits with 2 when there is an error, after all findings are printed.

    Example: `sma-pilot check experiments/pilots/smd.toml --data logs/`
    """
    from sma_pilot.logs.checks import check_log
    from sma_pilot.plan import load_plan

    frozen = load_plan(plan)
    with _progress() as progress:
        report = check_log(frozen, data, progress)
    if html is not None:
        _write(html, report.to_html())
        _say(f"wrote {html}")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
    if any(finding.level == "error" for finding in report.findings):
        raise typer.Exit(2)


@app.command()
def prepare(
    plan: PlanFile,
    data: DataFolder = Path(),
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Turn raw logs into the prepared data set: cut, cleaned, scaled by training rows alone.

    Example: `sma-pilot prepare experiments/pilots/smd.toml --data logs/`
    """
    from sma_pilot import pilot

    frozen, run = _open(plan, out)
    with _progress() as progress:
        pilot.prepare(frozen, data, run, progress)
    _done("prepare", run, run.dataset, as_json)


@app.command()
def fit(
    plan: PlanFile,
    data: DataFolder = Path(),
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Fit every arm on the train slice; a stopped fit goes on from its last state.

    Example: `sma-pilot fit experiments/pilots/smd.toml`
    """
    from sma_pilot import pilot

    frozen, run = _open(plan, out)
    with _progress() as progress:
        pilot.fit(frozen, data, run, progress)
    _done("fit", run, run.models, as_json)


@app.command()
def replay(plan: PlanFile, out: OutFolder = Path("runs"), as_json: AsJson = False) -> None:
    """Replay held-out time through every arm and keep the raw measurements.

    Example: `sma-pilot replay experiments/pilots/smd.toml`
    """
    from sma_pilot import pilot

    frozen, run = _open(plan, out)
    with _progress() as progress:
        pilot.replay(frozen, run, progress)
    _done("replay", run, run.replay, as_json)


@app.command()
def judge(
    plan: PlanFile,
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
    exit_code: ExitByVerdict = False,
) -> None:
    """Judge the measurements against the plan: go, no-go or inconclusive, with reasons.

    Example: `sma-pilot judge experiments/pilots/smd.toml --exit-code`
    """
    from sma_pilot import pilot

    frozen, run = _open(plan, out)
    _print_result(run, pilot.judge(frozen, run), as_json, exit_code)


@app.command()
def run(
    plan: PlanFile,
    data: DataFolder = Path(),
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
    exit_code: ExitByVerdict = False,
) -> None:
    """Go the whole way: prepare, fit, replay, judge, report, track. Goes on where it stopped.

    Example: `sma-pilot run experiments/pilots/smd.toml --data logs/`
    """
    from sma_pilot import pilot

    frozen, folder = _open(plan, out)
    with _progress() as progress:
        result = pilot.run_pilot(frozen, data, folder, _store(out), progress)
    _print_result(folder, result, as_json, exit_code)


@app.command()
def report(
    run: RunPath,
    page: Annotated[Path | None, typer.Option("--page", help="Where to write the page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the one-page HTML report of a judged run.

    Example: `sma-pilot report runs/smd-1a2b3c4d`
    """
    from sma_pilot import pilot
    from sma_pilot.run_folder import RunFolder

    written = pilot.report(RunFolder.open(run), page)
    typer.echo(json.dumps({"report": str(written)}) if as_json else str(written))


@app.command()
def track(run: RunPath, out: OutFolder = Path("runs"), as_json: AsJson = False) -> None:
    """Record a judged run in MLflow; a run that is there already is brought up to date.

    Example: `sma-pilot track runs/smd-1a2b3c4d`
    """
    from sma_pilot import pilot
    from sma_pilot.run_folder import RunFolder

    run_id = pilot.track(RunFolder.open(run), _store(out))
    typer.echo(json.dumps({"mlflow_run": run_id}) if as_json else run_id)


@app.command()
def demo(
    out: OutFolder = Path("runs"), as_json: AsJson = False, exit_code: ExitByVerdict = False
) -> None:
    """Run a whole pilot on a SYNTHETIC plant log that it makes first, to its verdict.

    Example: `sma-pilot demo`
    """
    # Said before the imports, which take seconds.
    _say("The log of this demo is SYNTHETIC: made by a seeded generator, no plant ever sent it.")
    from sma_pilot.demo import demo_plan_toml, make_demo_log
    from sma_pilot.plan import load_plan
    from sma_pilot.run_folder import RunFolder

    data = out / "demo-log"
    plan_file = data / "pilot.toml"
    with _progress() as progress:
        make_demo_log(data, on_progress=progress)
        plan_file.write_text(demo_plan_toml(), encoding="utf-8")
        frozen = load_plan(plan_file)
        folder = RunFolder.create(frozen, out)
        progress("load libraries", 0, None)
        from sma_pilot import pilot

        result = pilot.run_pilot(frozen, data, folder, _store(out), progress)
    _print_result(folder, result, as_json, exit_code)
    _say(f"\nThe log and its plan:  {data}, {plan_file.name}")
    _say(f"See it in MLflow:      sma-pilot ui{'' if out == Path('runs') else f' --out {out}'}")


@app.command()
def ui(
    out: OutFolder = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to bind; loopback unless told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI on the store that `run` and `demo` write.

    Example: `sma-pilot ui --port 5001`
    """
    from sma_pilot.ui import serve_ui

    serve_ui(out / "mlflow.db", port=port, host=host)


def main() -> None:
    """Run the command line; bad input ends in one message and exit code 2."""
    from sma_core.errors import SMAError

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()
    except (PilotError, SMAError) as error:
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        sys.exit(130)
