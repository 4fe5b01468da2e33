"""Commands that take a plan one step on, or the whole way."""

import json
from pathlib import Path
from typing import Any

import typer

from sma_pilot.cli.base import (
    EXIT_CODES,
    Address,
    AsJson,
    DataFolder,
    ExitByVerdict,
    OutFolder,
    PlanFile,
    Shards,
    TrackingUri,
    app,
    print_standing,
    progress_shown,
    say,
    sharding_over,
    store_for,
    store_in,
)
from sma_pilot.errors import TrackingError


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
    with progress_shown() as progress:
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
    with progress_shown() as progress:
        pilot.fit(frozen, data, run, progress)
    _done("fit", run, run.models, as_json)


@app.command()
def replay(
    plan: PlanFile,
    out: OutFolder = Path("runs"),
    address: Address = None,
    shards: Shards = None,
    as_json: AsJson = False,
) -> None:
    """Replay held-out time through every arm and keep the raw measurements.

    Example: `sma-pilot replay experiments/pilots/smd.toml`
    """
    from sma_pilot import pilot

    sharding = sharding_over(address, shards)
    frozen, run = _open(plan, out)
    with progress_shown() as progress:
        pilot.replay(frozen, run, progress, sharding)
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
    address: Address = None,
    shards: Shards = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    exit_code: ExitByVerdict = False,
) -> None:
    """Go the whole way: prepare, fit, replay, judge, report, track. Goes on where it stopped.

    A pilot in stages goes as far as it may, and says what it waits for.

    Example: `sma-pilot run experiments/pilots/smd.toml --data logs/`
    """
    from sma_pilot import pilot

    sharding = sharding_over(address, shards)
    store = store_for(tracking_uri, None, out)
    pilot.require_store(store)  # hours before it is needed
    frozen, folder = _open(plan, out)
    go, failure = pilot.run_stages if frozen.stages else pilot.run_pilot, None
    with progress_shown() as progress:
        try:
            go(frozen, data, folder, store, progress, sharding)
        except TrackingError as error:
            failure = error
    exit_code = exit_code and failure is None
    if frozen.stages:
        print_standing(folder, pilot.standing(folder), as_json, exit_code)
    else:
        _print_result(folder, pilot.load_result(folder), as_json, exit_code)
    if failure is not None:
        say("\nThe pilot is judged, but MLflow does not show it yet:")
        raise failure


@app.command()
def demo(
    out: OutFolder = Path("runs"), as_json: AsJson = False, exit_code: ExitByVerdict = False
) -> None:
    """Run a whole pilot on a SYNTHETIC plant log that it makes first, to its verdict.

    Example: `sma-pilot demo`
    """
    # Said before the imports, which take seconds.
    say("The log of this demo is SYNTHETIC: made by a seeded generator, no plant ever sent it.")
    from sma_pilot.demo import demo_plan_toml, make_demo_log
    from sma_pilot.plan import load_plan
    from sma_pilot.run_folder import RunFolder

    data = out / "demo-log"
    plan_file = data / "pilot.toml"
    with progress_shown() as progress:
        make_demo_log(data, on_progress=progress)
        plan_file.write_text(demo_plan_toml(), encoding="utf-8")
        frozen = load_plan(plan_file)
        folder = RunFolder.create(frozen, out)
        progress("load libraries", 0, None)
        from sma_pilot import pilot

        result = pilot.run_pilot(frozen, data, folder, store_in(out), progress)
    _print_result(folder, result, as_json, exit_code)
    say(f"\nThe log and its plan:  {data}, {plan_file.name}")
    say(f"See it in MLflow:      sma-pilot ui{'' if out == Path('runs') else f' --out {out}'}")
    say(f"Decide:                sma-pilot sign {folder.path} --decision … --by … --reason …")


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
    say(f"plan {plan.name} {plan.digest[:8]}, folder {run.path}")
    return plan, run


def _done(step: str, run: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"step": step, "run": str(run.path), "folder": str(folder)}))
    else:
        typer.echo(f"{step}: {folder}")
