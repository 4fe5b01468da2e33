"""The command line: parses, calls `sma_eval.experiment`, prints. No work is done here.

Results go to stdout, everything else to stderr. Exit codes: 0 every trial ended (failed ones are
in the table), 1 no trial finished, 2 bad input, 130 stopped.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sma_core.errors import SMAError
from sma_eval import experiment
from sma_eval.console import ConsoleProgress
from sma_eval.errors import StudyError
from sma_eval.estimate import estimate_cost
from sma_eval.experiment import Outcome
from sma_eval.failures import FAILURES
from sma_eval.folder import STUDY_FILE, in_use
from sma_eval.report import arms_frame, trials_frame
from sma_eval.search_report import efforts
from sma_eval.smoke import smoke_test
from sma_eval.space import Trial
from sma_eval.study import Study, load_study
from sma_eval.tasks import Prepared

app = typer.Typer(
    name="sma-eval",
    help="Compare routing policies and sub-module pools: studies on Ray Tune, tracked in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

StudyFile = Annotated[Path, typer.Argument(help="The study, a TOML file.", metavar="STUDY")]
StudyDir = Annotated[
    Path, typer.Argument(help="A study folder, as `run` left it.", metavar="STUDY_DIR")
]
DataFolder = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="SMA_DATA",
        help="Where the study's relative data set paths start.",
        metavar="DIR",
    ),
]
Address = Annotated[
    str,
    typer.Option(
        "--address",
        help="Ray cluster: auto on one of its nodes, host:port of its head, ray://host:port "
        "from outside; local starts one here.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow store; a database in the study folder unless told.",
    ),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke-test", help="Four steps a trial, every arm once: does the whole path work there?"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document alone on stdout.")]


@app.command()
def run(
    study: StudyFile,
    data: DataFolder = Path(),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The study folder; runs/NAME unless told.", metavar="DIR"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            envvar="SMA_CACHE",
            help="Generated data, shared between studies; in the study folder unless told.",
            metavar="DIR",
        ),
    ] = None,
    address: Address = "local",
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and their cost; nothing starts.")
    ] = False,
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> None:
    """Run every trial of a study, then print its table. Goes on where the same study stopped.

    Example: `sma-eval run experiments/studies/smoke.toml --out runs/smoke`
    """
    plan = smoke_test(load_study(study)) if smoke else load_study(study)
    trials = experiment.list_trials(plan, data)
    if dry_run:
        _print_trials(plan, trials, as_json)
        return
    folder = out or Path("runs") / plan.name
    before = Outcome.read(folder) if (folder / STUDY_FILE).exists() else None
    _say(f"{_headline(plan, trials)}, folder {folder}")
    for trial in trials:
        _say(f"  {trial.id}  {trial.label}")
    ended = before.count("finished", "stopped", *FAILURES) if before else 0
    outcome = experiment.run(
        plan,
        data=data,
        out=folder,
        cache=cache,
        address=address,
        tracking_uri=tracking_uri,
        observers=[ConsoleProgress(plan, plan.trials, ended)],
    )
    _finish(outcome, as_json)


@app.command()
def resume(
    study_dir: StudyDir,
    address: Address = "local",
    tracking_uri: TrackingUri = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the failed trials again, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a study that stopped: finished trials stay, others go on from their checkpoints.

    Example: `sma-eval resume runs/smoke`
    """
    before = Outcome.read(study_dir)
    study = before.folder.study
    ended = before.count("finished", "stopped", *(() if retry_failed else FAILURES))
    _say(f"study {study.name}: {ended} of {study.trials} trials have ended")
    outcome = experiment.resume(
        study_dir,
        address=address,
        tracking_uri=tracking_uri,
        observers=[ConsoleProgress(study, study.trials, ended)],
        retry_failed=retry_failed,
    )
    _finish(outcome, as_json)


@app.command()
def submit(
    study: StudyFile,
    address: Annotated[
        str,
        typer.Option("--address", help="The cluster's dashboard.", metavar="http://HOST:8265"),
    ],
    out: Annotated[
        str, typer.Option("--out", help="The study folder, as all nodes see it.", metavar="DIR")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Where relative data set paths start, there.", metavar="DIR"),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="Generated data that studies share, there.", metavar="DIR"),
    ] = None,
    tracking_uri: Annotated[
        # Not from this machine's environment: its store is hardly the cluster's.
        str | None,
        typer.Option("--tracking-uri", help="MLflow store, as the cluster's head sees it."),
    ] = None,
    smoke: Smoke = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run a study as a job on a Ray cluster: the study file goes there, its log comes back.

    The exit code is that of the run. The same command again goes on where the study stopped.

    Example: `sma-eval submit study.toml --address http://head:8265 --out /shared/runs/study`
    """
    from sma_eval.submission import JobServer, study_command  # Ray takes seconds to import

    plan = smoke_test(load_study(study)) if smoke else load_study(study)
    if not isinstance(plan.task, Prepared):  # which only the cluster may see
        _say(f"{len(experiment.list_trials(plan, Path()))} trials")
    places = {"out": out, "data": data, "cache": cache, "tracking-uri": tracking_uri}
    command = study_command(study.name, places, smoke=smoke)
    server = JobServer(address)
    job = server.submit(study, command, {"study": plan.name, "digest": plan.digest})
    _say(f"job {job.id}: {command}")
    goes_on = f"the job goes on; stop it with: ray job stop {job.id} --address {address}"
    try:
        if wait:
            job = server.follow(job.id, lambda text: typer.echo(text, nl=False, err=True))
    except (KeyboardInterrupt, StudyError):
        _say(goes_on)
        raise
    if as_json:
        _print_json({"study": plan.name, "digest": plan.digest, "address": address, **asdict(job)})
    else:
        typer.echo(f"{job.id} {job.status}")
    if not wait:
        _say(f"follow it with: ray job logs {job.id} --follow --address {address}")
    elif job.status != "SUCCEEDED":
        _say(job.message)
        raise typer.Exit(130 if job.status == "STOPPED" else job.exit_code or 1)


@app.command()
def status(study_dir: StudyDir, as_json: AsJson = False) -> None:
    """Say how far a study is, also while it runs.

    Example: `sma-eval status runs/smoke`
    """
    outcome = Outcome.read(study_dir)
    active = in_use(study_dir)
    if as_json:
        trials = trials_frame(outcome.records, outcome.folder.study)
        columns = ["id", "arm", "nuisance", "seed", "status", "step", "max_steps", "reason"]
        _print_json({**_summary(outcome), "active": active, "trials": trials[columns].to_dicts()})
        return
    counts = _summary(outcome)["counts"]
    parts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    study = outcome.folder.study
    typer.echo(f"{study.name}: {study.trials} trials: {parts}")
    for record in outcome.records:
        if record.status == "running":
            budget = record.trial.training["max_steps"]
            typer.echo(f"  {record.trial.label}: step {record.step} of {budget}")
        elif record.failed:
            how = record.status.replace("_", " ")
            typer.echo(f"  {record.trial.label}: {how}: {record.reason}")
    if active:
        typer.echo("a driver is at work")
    elif not outcome.complete:
        typer.echo(f"no driver is at work; go on with: sma-eval resume {study_dir}")


@app.command()
def report(
    study_dir: StudyDir,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; STUDY_DIR unless given.", metavar="DIR"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of a study again and write its page with plots, also while it runs.

    Example: `sma-eval report runs/smoke`
    """
    outcome = Outcome.read(study_dir)
    page = experiment.write_report(outcome, out)
    _print_outcome(outcome, as_json)
    _say(f"report: {(out or study_dir) / page.name}")


@app.command()
def best(
    study_dir: StudyDir,
    export: Annotated[Path, typer.Option("--export", help="Folder to write.", metavar="DIR")],
    arm: Annotated[
        str | None, typer.Option("--arm", help="Choose within this arm, as the table calls it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that is not empty.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export the checkpoint of the trial with the best objective on validation.

    Example: `sma-eval best runs/smoke --export runs/best --arm "tempered_softmax @ 0.25"`
    """
    trial = experiment.export_best(study_dir, export, arm=arm, force=force)
    if as_json:
        _print_json({"trial": trial.id, "label": trial.label, "checkpoint": str(export)})
    else:
        typer.echo(f"{trial.label}: {export}")


def main() -> None:
    """Run the command line; bad input ends in one message and exit code 2."""
    try:
        app()
    except (StudyError, SMAError) as error:
        _say(f"error: {error}")
        sys.exit(2)
    except OSError as error:  # a disk that is full, a folder that may not be read
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        sys.exit(130)


def _finish(outcome: Outcome, as_json: bool) -> None:
    _print_outcome(outcome, as_json)
    path = outcome.folder.path
    if failed := outcome.count(*FAILURES):
        _say(f"{failed} trials failed; see `sma-eval status {path}`")
    if not outcome.complete:
        _say(f"stopped; go on with: sma-eval resume {path}")
        raise typer.Exit(130)
    if not outcome.count("finished"):
        raise typer.Exit(1)


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        _print_json(
            {
                **_summary(outcome),
                "efforts": [asdict(effort) for effort in efforts(outcome.records)],
                "arms": arms_frame(outcome.rows).to_dicts(),
                "findings": asdict(outcome.findings),
                "conclusion": outcome.conclusion,
            }
        )
    else:
        typer.echo(outcome.table, nl=False)


def _summary(outcome: Outcome) -> dict[str, Any]:
    study = outcome.folder.study
    return {
        "study": study.name,
        "digest": study.digest,
        "folder": str(outcome.folder.path),
        "objective": study.objective.model_dump(exclude_defaults=True),
        "counts": {
            **{name: outcome.count(name) for name in ("finished", *FAILURES, "stopped", "running")},
            "pending": outcome.count("pending") + outcome.unknown,
        },
    }


def _print_trials(study: Study, trials: tuple[Trial, ...], as_json: bool) -> None:
    cost = estimate_cost(study, trials)
    if as_json:
        content = [{"label": trial.label, **trial.to_dict()} for trial in trials]
        _print_json(
            {"study": study.name, "digest": study.digest, "cost": asdict(cost), "trials": content}
        )
        return
    typer.echo(_headline(study, trials))
    for trial in trials:
        typer.echo(f"  {trial.id}  {trial.label}")
    typer.echo(str(cost))


def _headline(study: Study, trials: tuple[Trial, ...]) -> str:
    head = f"study {study.name} {study.digest[:12]}: {study.trials} trials"
    if len(trials) < study.trials:
        head += f" (the first {len(trials)} are known, Optuna asks for the others)"
    return head


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def _say(text: str) -> None:
    typer.echo(text, err=True)
