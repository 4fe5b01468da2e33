"""The flow of a pilot as functions: from raw logs to a verdict, its record and its signature.

Each function reads what the step before it left in the run folder and leaves its own part there.
A part that is whole is never made again, so that a stopped pilot goes on where it stopped. The
command line parses and prints; everything it can do is here.
"""

import json
from pathlib import Path

from sma_core import CheckpointError, DatasetError, PreparedDataset
from sma_pilot.arms import fit_arms
from sma_pilot.decision.record import Choice, Decision
from sma_pilot.decision.signing import sign as sign_run
from sma_pilot.decision.verification import Verification
from sma_pilot.decision.verification import verify as verify_run
from sma_pilot.errors import RunError
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge as judge_measurements
from sma_pilot.logs.windows import prepare as prepare_dataset
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay as replay_arms
from sma_pilot.report.page import write_report
from sma_pilot.run_folder import RunFolder, write_json


def prepare(plan: Plan, data: Path, run: RunFolder, on_progress: OnProgress) -> PreparedDataset:
    """Turn the raw logs under `data` into the run's prepared data set."""
    return prepare_dataset(plan, data, run.dataset, on_progress)


def fit(plan: Plan, data: Path, run: RunFolder, on_progress: OnProgress) -> None:
    """Fit every arm of the plan on the train slice, early-stopped on the validation slice."""
    fit_arms(plan, _prepared(run), data, run.models, on_progress)


def replay(plan: Plan, run: RunFolder, on_progress: OnProgress) -> None:
    """Send held-out time through every arm and keep each score, latency and routing decision."""
    replay_arms(plan, _prepared(run), run.models, run.replay, on_progress)


def judge(plan: Plan, run: RunFolder) -> Result:
    """Judge the measurements against the plan and leave ``result.json``."""
    result = judge_measurements(load_measurements(run.replay), plan)
    write_json(run.result, result.to_dict())
    return result


def report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the one-page report and return its path."""
    return write_report(run.path, out)


def track(run: RunFolder, store: str) -> str:
    """Record the judged run in the MLflow store and return the run's id there."""
    from sma_pilot.tracking import track as track_run  # MLflow takes seconds to import

    return track_run(run.path, store)


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

    `track` shows it in MLflow and moves the aliases of the registered model.
    """
    return sign_run(run, decision, by, reason, override=override, on_progress=on_progress)


def verify(path: Path, record: str | None, on_progress: OnProgress) -> Verification:
    """Find what was changed in the run folder at `path` since it was signed."""
    return verify_run(RunFolder(path), record, on_progress)


def load_result(run: RunFolder) -> Result:
    """Read the verdict of a judged run back."""
    try:
        return Result.from_dict(json.loads(run.result.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{run.path}: no result.json yet; run `sma-pilot judge` first") from error
    except ValueError as error:
        raise RunError(f"{run.result}: not valid JSON: {error}") from error


def run_pilot(
    plan: Plan, data: Path, run: RunFolder, store: str, on_progress: OnProgress
) -> Result:
    """Go the whole way: prepare, fit, replay, judge, report, track."""
    prepare(plan, data, run, on_progress)
    fit(plan, data, run, on_progress)
    replay(plan, run, on_progress)
    on_progress("judge", 0, None)
    result = judge(plan, run)
    on_progress("report", 0, None)
    report(run)
    on_progress("track", 0, None)
    track(run, store)
    return result


def _prepared(run: RunFolder) -> PreparedDataset:
    try:
        return PreparedDataset.open(run.dataset)
    except (DatasetError, CheckpointError) as error:
        raise RunError(f"{error}\nRun `sma-pilot prepare` with the same plan first.") from error
