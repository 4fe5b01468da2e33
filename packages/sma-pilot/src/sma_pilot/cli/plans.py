"""Commands before a pilot: draft a plan for a log, check the log, tell what it can prove."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sma_pilot.cli.base import (
    AsJson,
    DataFolder,
    OutFolder,
    PlanFile,
    app,
    progress_shown,
    say,
    write,
)
from sma_pilot.errors import PlanError
from sma_pilot.judge.provable import LIKELY_DISCORDANCE, POWER


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
    with progress_shown() as progress:
        text = init_plan(
            log, time=time, entity=entity, label=label, data_dir=data, on_progress=progress
        )
    if not printed:
        write(plan, text)
        say(f"wrote {plan}; read its comments, then: sma-pilot check {plan}")
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
    with progress_shown() as progress:
        report = check_log(frozen, data, progress)
    if html is not None:
        write(html, report.to_html())
        say(f"wrote {html}")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
    if any(finding.level == "error" for finding in report.findings):
        raise typer.Exit(2)


@app.command("plan")
def plan_(
    plan: PlanFile,
    data: DataFolder = Path(),
    incumbent: Annotated[
        bool,
        typer.Option(
            "--incumbent",
            help="Fit and replay the incumbent first, to measure the memory of what it catches.",
        ),
    ] = False,
    discordance: Annotated[
        float,
        typer.Option(
            help="Share of events on which a candidate without any loss is assumed to differ."
        ),
    ] = LIKELY_DISCORDANCE,
    power: Annotated[
        float, typer.Option(help="Wanted chance that such a candidate passes.")
    ] = POWER,
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tell the smallest loss that a log can prove, and refuse a loss limit below it.

    A plan in stages gets an answer for each, as each has to prove its limit on its own rows. Exits
    with 2 when a limit is out of reach, after the data that it would take is printed.
    Nothing is written, but for a run folder with --incumbent, which the pilot then goes on from.

    Example: `sma-pilot plan experiments/pilots/smd.toml --data logs/`
    """
    from sma_pilot.plan import load_plan
    from sma_pilot.planning import plan_pilot
    from sma_pilot.run_folder import RunFolder

    frozen = load_plan(plan)
    with progress_shown() as progress:
        run = RunFolder.create(frozen, out) if incumbent else None
        answers = plan_pilot(frozen, data, progress, run=run, discordance=discordance, power=power)
    told = [answer.to_dict() for answer in answers]
    if as_json:
        typer.echo(json.dumps(told if frozen.stages else told[0], indent=2))
    else:
        typer.echo("\n\n".join(answer.to_text() for answer in answers))
    if out_of_reach := [answer for answer in answers if not answer.reachable]:
        where = ", ".join(f"stage {answer.stage}" for answer in out_of_reach if answer.stage)
        say(
            f"error: {plan}: quality.loss_limit cannot be proven{where and f' in {where}'}; "
            "raise it, or judge more time"
        )
        raise typer.Exit(2)
