"""One sweep: trials handed to Ray Tune, and what becomes of them told to the observers."""

import dataclasses
import logging
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayActorError

from sma_eval.failures import failure_of, failure_of_death
from sma_eval.records import Observer, Report, TrialRecord, TrialResult
from sma_eval.resources import Resources
from sma_eval.rounds import Round
from sma_eval.scheduler import Asha
from sma_eval.space import Trial
from sma_eval.study import Study
from sma_eval.trial import run_trial

from .gang import company, placement
from .newest import NewestFirst
from .race import QUALITY, STEP, TRIAL, Race

log = logging.getLogger(__name__)


def sweep(
    study: Study,
    now: Round,
    records: Sequence[TrialRecord],
    *,
    root: Path,
    attempt: str,
    dataset: Path,
    provenance: Mapping[str, Any],
    observers: Sequence[Observer],
) -> None:
    """Run the trials of a round; needs a `connected` Ray.

    Parameters
    ----------
    study
        The study.
    now
        The round.
    records
        Of all trials of the study, which a race compares with.
    root
        The study folder. On a cluster every node must see it at this path.
    attempt
        Folder name under ``root/ray`` for this run's checkpoints; not taken yet.
    dataset
        The prepared data set; every node must see it at this path.
    provenance
        Of the study, for the card of every checkpoint.
    observers
        Told of every change, in this order.
    """
    resources = study.resources
    together = resources.processes > 1
    runs = {
        record.trial.id: {
            "trial": dataclasses.replace(record.trial, training=record.training).to_dict(),
            "start": str(root / record.checkpoint) if record.checkpoint else None,
            "dataset": str(dataset),
            "test_split": study.task.test or "validation",
            "resources": resources.model_dump(),
            "until": now.until,
            "metric": f"validation_{study.objective.metric}",
            # The processes of a trial meet in a folder that every node sees.
            "work": str(root / "ray" / attempt) if together else None,
            "provenance": {**provenance, "trial": record.trial.id, "label": record.trial.label},
        }
        for record in now.todo
    }
    race = None
    if now.race and isinstance(study.scheduler, Asha):
        race = Race(study.scheduler, study.objective, records)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_train, runs=runs), placement(resources)),
        # Names alone: Ray copies the whole grid for each trial that it makes of it.
        param_space={TRIAL: tune.grid_search(list(runs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.max_concurrent,
            trial_dirname_creator=_trial_id,
            scheduler=race or NewestFirst(),
            # A process group that a trial left in disorder dies with its process.
            reuse_actors=not together,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=str(root / "ray"),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            callbacks=[_Relay(now.todo, root, observers, race)],
            verbose=0,
        ),
    )
    # Ray prints; stdout is for results alone.
    with redirect_stdout(sys.stderr):
        tuner.fit()


def _trial_id(trial: Any) -> str:
    return trial.config[TRIAL]


def _train(config: dict[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Run one trial in a worker."""
    run = runs[config[TRIAL]]
    resources = Resources(**run["resources"])

    def report(report: Report, folder: Path | None) -> None:
        checkpoint = None if folder is None else tune.Checkpoint.from_directory(folder)
        told: dict[str, Any] = {"report": dataclasses.asdict(report), STEP: report.step}
        if run["metric"] in report.metrics:
            told[QUALITY] = report.metrics[run["metric"]]
        tune.report(told, checkpoint=checkpoint)

    # Ray's own checkpoint is the younger: it is of this attempt.
    start = tune.get_checkpoint()
    if start is None and run["start"] is not None:
        start = tune.Checkpoint.from_directory(run["start"])
    if run["work"] is not None:
        Path(run["work"]).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=run["work"]) as work:
        folder = Path(work) / "trial"
        if start is not None:
            start.to_directory(folder)
        try:
            with company(run, folder):
                result = run_trial(
                    Trial.from_dict(run["trial"]),
                    Path(run["dataset"]),
                    folder,
                    test_split=run["test_split"],
                    device=resources.device,
                    threads=resources.threads,
                    sharding=resources.sharding,
                    until=run["until"],
                    provenance=run["provenance"],
                    report=report,
                )
        except RayActorError:  # a process of the trial died: Ray starts it again
            raise
        except Exception as error:  # whatever a trial throws ends this trial and no other
            failure = {
                "status": failure_of(error),
                "reason": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
            tune.report({"failure": failure})
            return
        if result is not None:
            tune.report(
                {"result": dataclasses.asdict(result)},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


class _Relay(tune.Callback):
    """Turns Ray's events into records for the observers."""

    def __init__(
        self,
        records: Sequence[TrialRecord],
        root: Path,
        observers: Sequence[Observer],
        race: Race | None = None,
    ) -> None:
        self._records = {record.trial.id: record for record in records}
        self._root = root
        self._observers = observers
        self._race = race

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
            record = self._records[_trial_id(trial)]
            if QUALITY in result:
                record = record.measured(report.step, result[QUALITY])
            self._change(trial, report, status="running", step=report.step, curve=record.curve)

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        # The checkpoint before this one goes only after the record has changed, so that a driver
        # killed here leaves one that names one of the two. Ray itself would delete it, too, and
        # write the state of all trials before each such deletion: a thousand trials would crawl.
        new = Path(checkpoint.path).relative_to(self._root)
        old = self._records[_trial_id(trial)].checkpoint
        self._change(trial, checkpoint=str(new))
        if old is not None and Path(old) != new and Path(old).parent == new.parent:
            shutil.rmtree(self._root / old, ignore_errors=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        stopped = {} if self._race is None else self._race.stopped
        if "result" in trial.last_result:
            result = TrialResult(**trial.last_result["result"])
            self._change(trial, status="finished", step=result.steps, result=result)
        elif (step := stopped.get(_trial_id(trial))) is not None:
            reason = f"stopped by ASHA at step {step}: others of its arm were better"
            self._change(trial, status="stopped", reason=reason, checkpoint=None)

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
