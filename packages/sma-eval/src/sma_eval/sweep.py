"""Run trials on Ray Tune. Of all files only this one and `submission` import ray.

Ray places trials, moves checkpoints to the study folder and starts a trial again from its latest
one when its process or machine dies. What is finished is for the study folder's records to say:
a resumed study hands over its unfinished trials, each with the checkpoint to go on from, and Ray
starts afresh, since its own way to restore a driver would unpickle whatever lies in the folder.
"""

import dataclasses
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

# Under `uv run` Ray would build an environment for every worker; the one that stands is meant.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Without these, Ray writes a CSV, a JSON and a TensorBoard file for each trial beside our records,
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# prints a banner of its own, and every error whole where our one line says it,
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
# and warns of a coming change of what a trial without GPUs sees; this is the coming behaviour.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune

from sma_eval.errors import StudyError
from sma_eval.failures import failure_of, failure_of_death
from sma_eval.reach import require_answer
from sma_eval.records import Observer, Report, TrialRecord, TrialResult
from sma_eval.space import Trial
from sma_eval.study import Resources
from sma_eval.trial import run_trial

LOCAL = "local"

log = logging.getLogger(__name__)


@contextmanager
def connected(address: str, resources: Resources) -> Iterator[None]:
    """Start a Ray of our own (``local``) or join a cluster, and leave it again.

    In a process that has joined a Ray already, that one is used, and stays.

    Raises
    ------
    StudyError
        When there is no such cluster, or this machine alone cannot hold one trial.
    """
    joined = ray.is_initialized()
    if not joined:
        _join(address)
    try:
        if address == LOCAL:  # a cluster may grow, this machine will not
            _require_room(resources)
        yield
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str) -> None:
    if address.startswith("ray://"):
        # Ray would carry the sweep out on the cluster, out of reach of this process's observers.
        raise StudyError(
            f"--address {address}: the Ray client cannot follow a study; run it on a node of the "
            "cluster, with --address auto"
        )
    host, colon, port = address.rpartition(":")
    if colon:
        require_answer(address, host, port)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(f"--address {address}: cannot join Ray there: {error}") from error


def _require_room(resources: Resources) -> None:
    have = ray.cluster_resources()
    for field, name, wanted in (
        ("cpus", "CPU", resources.cpus),
        ("gpus", "GPU", resources.gpus),
    ):
        if wanted > have.get(name, 0.0):
            raise StudyError(
                f"resources.{field}: a trial takes {wanted:g} and this machine has "
                f"{have.get(name, 0.0):g}; lower it, or run on a cluster with --address"
            )


def sweep(
    records: Sequence[TrialRecord],
    *,
    root: Path,
    attempt: str,
    dataset: Path,
    test_split: str,
    provenance: Mapping[str, Any],
    resources: Resources,
    observers: Sequence[Observer],
) -> None:
    """Run unfinished trials to their ends; needs a `connected` Ray.

    Parameters
    ----------
    records
        The trials, each with the checkpoint that it goes on from.
    root
        The study folder. On a cluster every node must see it at this path.
    attempt
        Folder name under ``root/ray`` for this run's checkpoints; not taken yet.
    dataset
        The prepared data set; every node must see it at this path.
    test_split
        Split that the result's test figures are of.
    provenance
        Of the study, for the card of every checkpoint.
    resources
        What a trial takes.
    observers
        Told of every change, in this order.
    """
    space = [
        {
            "trial": record.trial.to_dict(),
            "start": str(root / record.checkpoint) if record.checkpoint else None,
            "dataset": str(dataset),
            "test_split": test_split,
            "device": "cuda" if resources.gpus else "cpu",
            "threads": max(1, int(resources.cpus)),
            "provenance": {**provenance, "trial": record.trial.id, "label": record.trial.label},
        }
        for record in records
    ]
    tuner = tune.Tuner(
        tune.with_resources(_train, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space={"run": tune.grid_search(space)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.max_concurrent,
            trial_dirname_creator=_trial_id,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=str(root / "ray"),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_Relay(records, root, observers)],
            verbose=0,
        ),
    )
    # Ray prints; stdout is for results alone.
    with redirect_stdout(sys.stderr):
        tuner.fit()


def _trial_id(trial: Any) -> str:
    return trial.config["run"]["trial"]["id"]


def _train(config: dict[str, Any]) -> None:
    """Run one trial in a worker."""
    run = config["run"]

    def report(report: Report, folder: Path | None) -> None:
        checkpoint = None if folder is None else tune.Checkpoint.from_directory(folder)
        tune.report({"report": dataclasses.asdict(report)}, checkpoint=checkpoint)

    # Ray's own checkpoint is the younger: it is of this attempt.
    start = tune.get_checkpoint()
    if start is None and run["start"] is not None:
        start = tune.Checkpoint.from_directory(run["start"])
    with tempfile.TemporaryDirectory(prefix="sma-eval-") as work:
        folder = Path(work) / "trial"
        if start is not None:
            start.to_directory(folder)
        try:
            result = run_trial(
                Trial.from_dict(run["trial"]),
                Path(run["dataset"]),
                folder,
                test_split=run["test_split"],
                device=run["device"],
                threads=run["threads"],
                provenance=run["provenance"],
                report=report,
            )
        except Exception as error:  # whatever a trial throws ends this trial and no other
            failure = {
                "status": failure_of(error),
                "reason": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
            tune.report({"failure": failure})
            return
        tune.report(
            {"result": dataclasses.asdict(result)},
            checkpoint=tune.Checkpoint.from_directory(folder),
        )


class _Relay(tune.Callback):
    """Turns Ray's events into records for the observers."""

    def __init__(
        self, records: Sequence[TrialRecord], root: Path, observers: Sequence[Observer]
    ) -> None:
        self._records = {record.trial.id: record for record in records}
        self._root = root
        self._observers = observers

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles the whole tuner, for a restore that is never used.
        return _Relay, ((), self._root, ())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failure" in result:
            self._change(trial, **result["failure"])
        elif "report" in result:
            report = Report(**result["report"])
            self._change(trial, report, status="running", step=report.step)

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        # Ray deletes the checkpoint before this one only after this call, so that a driver killed
        # here leaves a record that names one of the two.
        self._change(trial, checkpoint=str(Path(checkpoint.path).relative_to(self._root)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if "result" in trial.last_result:
            result = TrialResult(**trial.last_result["result"])
            self._change(trial, status="finished", step=result.steps, result=result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.warning(
            "%s: its process or machine died; it starts again from its last checkpoint",
            self._records[_trial_id(trial)].trial.label,
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        told = trial.get_error() or ""
        status = failure_of_death(told)
        what = "used up memory and was killed" if status == "out_of_memory" else "or machine died"
        reason = f"its process {what}, {trial.num_failures} times"
        self._change(trial, status=status, reason=reason, traceback=told)

    def _change(self, trial: Any, report: Report | None = None, **changes: Any) -> None:
        trial_id = _trial_id(trial)
        record = dataclasses.replace(self._records[trial_id], **changes)
        self._records[trial_id] = record
        for observer in self._observers:
            observer.update(record, report)
