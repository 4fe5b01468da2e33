"""The flow of a pilot as functions: from raw logs to a verdict, its record and its signature.

Each function reads what the step before it left in the run folder and leaves its own part there.
A part that is whole is never made again, so that a stopped pilot goes on where it stopped. The
command line parses and prints; everything it can do is here.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sma_core import CheckpointError, DatasetError, PreparedDataset
from sma_pilot.arms import fit_arms
from sma_pilot.decision.record import Choice, Decision
from sma_pilot.decision.signing import sign as sign_run
from sma_pilot.decision.verification import Verification
from sma_pilot.decision.verification import verify as verify_run
from sma_pilot.errors import DecisionError, RunError, TrackingError
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge as judge_measurements
from sma_pilot.logs.windows import prepare as prepare_dataset
from sma_pilot.monitor.course import Monitored, take_looks
from sma_pilot.monitor.look import read_looks
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay as replay_arms
from sma_pilot.replay.sharding import Sharding
from sma_pilot.report.monitor import write_monitor_page
from sma_pilot.report.page import write_report
from sma_pilot.report.stages import write_stages_report
from sma_pilot.run_folder import RunFolder, write_json
from sma_pilot.stages.course import take_look
from sma_pilot.stages.standing import Standing
from sma_pilot.stages.standing import standing as standing_of
from sma_pilot.stages.windows import window_of
from sma_pilot.store import database_of


def prepare(plan: Plan, data: Path, run: RunFolder, on_progress: OnProgress) -> PreparedDataset:
    """Turn the raw logs under `data` into the run's prepared data set."""
    return prepare_dataset(plan, data, run.dataset, on_progress)


def fit(plan: Plan, data: Path, run: RunFolder, on_progress: OnProgress) -> None:
    """Fit every arm of the plan on the train slice, early-stopped on the validation slice."""
    fit_arms(plan, _prepared(run), data, run.models, on_progress)


def replay(
    plan: Plan, run: RunFolder, on_progress: OnProgress, sharding: Sharding | None = None
) -> None:
    """Send held-out time through every arm and keep each score, latency and routing decision.

    With `sharding` others score the rows of the offline scenario; the numbers are the same.
    """
    _refuse_stages(plan, "replay")
    replay_arms(plan, _prepared(run), run.models, run.replay, on_progress, sharding=sharding)


def judge(plan: Plan, run: RunFolder) -> Result:
    """Judge the measurements against the plan and leave ``result.json``."""
    _refuse_stages(plan, "judge")
    result = judge_measurements(load_measurements(run.replay), plan)
    write_json(run.result, result.to_dict())
    return result


def report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the one-page report, of a pilot in stages that of them all, and return its path."""
    if run.stage is None and run.load_plan().stages:
        return write_stages_report(run, out)
    return write_report(run.path, out)


def require_store(store: str) -> None:
    """Raise TrackingError unless the MLflow server at `store` answers and lets itself be read."""
    if database_of(store) is None:
        from sma_pilot.mlflow_access import require_access  # MLflow takes seconds to import

        require_access(store)


def track(run: RunFolder, store: str) -> str:
    """Record the judged run in the MLflow store and return the run's id there.

    The folder of a stage stands for its pilot, of which that stage alone is brought up to date.
    """
    from sma_pilot.tracking import track as track_run  # MLflow takes seconds to import

    run_id = track_run(run.root, store, run.stage)
    if run.monitor.is_dir():
        track_looks(RunFolder(run.root), store)
    return run_id


def sign(
    run: RunFolder,
    decision: Choice,
    by: str,
    reason: str,
    *,
    override: bool,
    on_progress: OnProgress,
) -> Decision:
    """Sign a decision over every file of the judged run, and show it on the report.

    In a pilot in stages it is one of them that is signed: `run` is its folder (`RunFolder.at`).
    `track` shows it in MLflow and moves the aliases of the registered model.
    """
    if run.stage is None and run.load_plan().stages:
        names = ", ".join(stage.name for stage in run.load_plan().stages)
        raise DecisionError(f"--stage: this pilot has stages, so name the one to sign: {names}")
    signed = sign_run(run, decision, by, reason, override=override, on_progress=on_progress)
    if run.stage is not None:
        write_stages_report(RunFolder(run.root))
    return signed


def verify(run: RunFolder, record: str | None, on_progress: OnProgress) -> Verification:
    """Find what was changed in a run folder since it was signed.

    In a pilot in stages, all that were signed are verified, each against its newest decision. The
    looks of a monitor are checked, too, against each other and their own hashes.
    """
    found = verify_run(run, record, on_progress)
    if run.stage is not None:
        return found
    looks, faults = read_looks(run)
    return replace(found, looks=len(looks), look_faults=faults)


def monitor(
    plan: Plan, run: RunFolder, log: Sequence[str], data: Path, on_progress: OnProgress
) -> Monitored:
    """Look at what came after a signed go, and write the page of all looks.

    See `sma_pilot.monitor.course.take_looks` for the parameters and the errors. `track_looks`
    shows the looks in MLflow.
    """
    found = take_looks(plan, run, log, data, on_progress)
    on_progress("report", 0, None)
    write_monitor_page(plan, run, found.chain)
    return found


def track_looks(run: RunFolder, store: str) -> None:
    """Record the looks of a monitor in the MLflow store, one run each."""
    from sma_pilot.tracking import track_looks as track_all  # MLflow takes seconds to import

    track_all(run.path, store)


def standing(run: RunFolder) -> Standing:
    """Tell how a pilot in stages stands, from its files."""
    if not run.load_plan().stages:
        raise RunError(f"{run.path}: a pilot of one stage; `sma-pilot judge` tells how it stands")
    return standing_of(run)


def load_result(run: RunFolder) -> Result:
    """Read the verdict of a judged run back."""
    try:
        return Result.from_dict(json.loads(run.result.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{run.path}: no result.json yet; run `sma-pilot judge` first") from error
    except ValueError as error:
        raise RunError(f"{run.result}: not valid JSON: {error}") from error


def run_pilot(
    plan: Plan,
    data: Path,
    run: RunFolder,
    store: str,
    on_progress: OnProgress,
    sharding: Sharding | None = None,
) -> Result:
    """Go the whole way: prepare, fit, replay, judge, report, track."""
    prepare(plan, data, run, on_progress)
    fit(plan, data, run, on_progress)
    replay(plan, run, on_progress, sharding)
    on_progress("judge", 0, None)
    result = judge(plan, run)
    on_progress("report", 0, None)
    report(run)
    on_progress("track", 0, None)
    track(run, store)
    return result


def run_stages(
    plan: Plan,
    data: Path,
    run: RunFolder,
    store: str,
    on_progress: OnProgress,
    sharding: Sharding | None = None,
) -> Standing:
    """Take a pilot in stages as far as it may go: to its end, or to a signature that it waits for.

    After each look the pages and the record are brought up to date. A store that is away meanwhile
    stops nothing: at the end all of the record is.
    """
    dataset = prepare(plan, data, run, on_progress)
    for stage in plan.stages:
        window_of(plan, stage, 1, dataset.card)  # what does not fit the log is found before a fit
    fit(plan, data, run, on_progress)
    now = standing_of(run)
    while now.next is not None:
        look = take_look(now, dataset, run, on_progress, sharding)
        on_progress("report", 0, None)
        report(run.at(look.stage))
        now = standing_of(run)
        report(run)
        on_progress("track", 0, None)
        with suppress(TrackingError):
            track(run.at(look.stage), store)
    on_progress("report", 0, None)
    report(run)
    on_progress("track", 0, None)
    track(run, store)
    return now


def _refuse_stages(plan: Plan, step: str) -> None:
    if plan.stages:
        raise RunError(
            f"{step}: the plan has stages, which start one after the other; `sma-pilot run` takes "
            "them as far as they may go"
        )


def _prepared(run: RunFolder) -> PreparedDataset:
    try:
        return PreparedDataset.open(run.dataset)
    except (DatasetError, CheckpointError) as error:
        raise RunError(f"{error}\nRun `sma-pilot prepare` with the same plan first.") from error
