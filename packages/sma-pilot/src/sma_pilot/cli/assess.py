"""The command that looks at a log before anything is trained."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sma_pilot.cli.base import AsJson, DataFolder, OutFolder, app, progress_shown, say


@app.command()
def assess(
    log: Annotated[
        list[Path],
        typer.Argument(help="A plan (pilot.toml), or log files, folders or patterns."),
    ],
    time: Annotated[str | None, typer.Option(help="Column of the timestamp.")] = None,
    entity: Annotated[
        str | None, typer.Option(help='Column that names the machine; "" if there is none.')
    ] = None,
    label: Annotated[
        str | None, typer.Option(help='Column that marks failures; "" if there is none.')
    ] = None,
    floor: Annotated[
        Path | None,
        typer.Option(
            "--floor", help="What `python -m sma_core.bench floor --json FILE` wrote: adds times."
        ),
    ] = None,
    data: DataFolder = Path(),
    out: OutFolder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tell how much sparse activation could save on a log, before any model is trained.

    Columns of a log without a plan are guessed as `init` does.

    Example: `sma-pilot assess logs/*.csv --time timestamp --entity machine`
    """
    from sma_pilot.assess import assess as assess_log
    from sma_pilot.assess import read_ceilings
    from sma_pilot.assess.page import assessment_text, write_assessment
    from sma_pilot.errors import PlanError
    from sma_pilot.init import init_plan
    from sma_pilot.logs.windows import prepare
    from sma_pilot.plan import load_plan, parse_plan
    from sma_pilot.run_folder import RunFolder, write_json

    ceilings = None if floor is None else read_ceilings(floor)
    is_plan = len(log) == 1 and log[0].suffix == ".toml"
    if is_plan and (time, entity, label) != (None, None, None):
        raise PlanError("--time, --entity and --label describe a log; a plan names its own columns")
    with progress_shown() as progress:
        if is_plan:
            plan = load_plan(log[0])
        else:
            guessed = init_plan(
                log, time=time, entity=entity, label=label, data_dir=data, on_progress=progress
            )
            plan = parse_plan(guessed, "the plan guessed from the log")
        run = RunFolder.create(plan, out)
        say(f"plan {plan.name} {plan.digest[:8]}, folder {run.path}")
        dataset = prepare(plan, data, run.dataset, progress)
        found = assess_log(plan, dataset, data, progress, ceilings)
    write_json(run.assessment, found.to_dict())
    write_assessment(found, run.assessment_page)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        typer.echo(assessment_text(found))
        typer.echo(f"\npage     {run.assessment_page}")
        typer.echo(f"figures  {run.assessment}")
