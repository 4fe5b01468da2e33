"""MLflow: one run per trial under one parent run per study folder, live while trials train.

The only file that imports mlflow. Runs are found by tags, never by name, and a metric is never
logged for a step that the run already has: a study that goes on in another process goes on in the
same runs, without duplicates.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The driver of a study writes between two reports of its trials: a store that is away must cost
# seconds, not the minutes of mlflow's default patience.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag

from sma_eval.effects import policy_level
from sma_eval.errors import TrackingError
from sma_eval.folder import StudyFolder
from sma_eval.naming import leaves, names_of, with_short_name
from sma_eval.records import Report, TrialRecord
from sma_eval.space import Trial

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
STUDY_TAG = "sma.study"
TRIAL_TAG = "sma.trial"
_NOTE = "mlflow.note.content"
# Groups of metrics on a run's page: what was seen while training, then what came of it.
_LIVE = "live"
_COSTS = (
    *("flops_per_step", "dense_flops_per_step", "latency_seconds", "state_bytes"),
    *("parameters", "best_step", "seconds"),
)
_ENDS = {"finished": "FINISHED", "stopped": "KILLED"}
_MAX_METRICS = 1000  # of one log_batch
_MAX_PARAMS = 100


def default_uri(folder: StudyFolder) -> str:
    """Return the store inside the study folder."""
    return f"{_SQLITE}{folder.path / 'mlflow.db'}"


class Tracker:
    """Writes a study to an MLflow store; an observer of its trials.

    A store that fails while trials run is warned about and tried again later, and `close` brings
    every ended trial up to date: figures live in the study folder, the store is a view of them.

    Parameters
    ----------
    folder
        The study folder.
    uri
        Of the tracking store.
    flush_seconds
        Metrics are collected this long and written in one batch.
    pause_seconds
        How long a store that failed is left alone.

    Raises
    ------
    TrackingError
        When the store cannot be opened.
    """

    def __init__(
        self,
        folder: StudyFolder,
        uri: str,
        *,
        flush_seconds: float = 2.0,
        pause_seconds: float = 60.0,
    ) -> None:
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._folder = folder
        self._uri = uri
        self._flush_seconds = flush_seconds
        self._pause_seconds = pause_seconds
        self._flush_at = 0.0
        self._reports: dict[str, list[Report]] = {}
        self._records: dict[str, TrialRecord] = {}
        self._live: set[str] = set()
        self._names = names_of(folder.trials)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._experiment()
            runs = {run.data.tags.get(TRIAL_TAG, ""): run for run in self._study_runs()}
            self._parent = runs.pop("", None) or self._create_parent()
            self._describe_parent()
            self._runs: dict[str, Run] = runs
            self._last_step = {trial: self._logged_step(run) for trial, run in runs.items()}
            self._client.update_run(self.parent_id, status="RUNNING")
        except Exception as error:  # each kind of store has errors of its own
            raise TrackingError(
                f"tracking store {uri}: cannot be opened: {_first_line(error)}; "
                "start its server or give another --tracking-uri"
            ) from error

    @property
    def parent_id(self) -> str:
        """Run id of the study."""
        return self._parent.info.run_id

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Collect a report, and write what was collected when it is time or the trial ended."""
        self._records[record.trial.id] = record
        if report is not None:
            self._reports.setdefault(record.trial.id, []).append(report)
        if _never_ran(record):
            return
        if record.ended:
            with self._tolerated():
                self._flush_trial(record.trial)
                self._end(record)
        elif time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Write every collected report."""
        self._flush_at = time.monotonic() + self._flush_seconds
        with self._tolerated():
            for trial_id in list(self._reports):
                self._flush_trial(self._records[trial_id].trial)

    def close(
        self,
        records: Sequence[TrialRecord],
        *,
        status: str,
        description: str = "",
        files: Sequence[Path] = (),
    ) -> None:
        """Bring every ended trial up to date, then describe and end the study's run.

        Parameters
        ----------
        records
            Of every trial of the study.
        status
            ``FINISHED`` or ``KILLED``.
        description
            Markdown, shown on the run's page.
        files
            Attached to the run.
        """
        self._flush_at = 0.0
        with self._tolerated():
            for record in records:
                if _never_ran(record):
                    continue
                if record.ended:
                    self._flush_trial(record.trial)
                    self._end(record)
                elif record.trial.id in {*self._runs, *self._reports}:
                    self._interrupt(record.trial)
            if description:
                self._client.set_tag(self.parent_id, _NOTE, description)
            for file in files:
                self._client.log_artifact(self.parent_id, str(file))
            self._client.set_terminated(self.parent_id, status=status)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the store is a view; none of its errors may stop a study
            self._flush_at = time.monotonic() + self._pause_seconds
            log.warning(
                "tracking store %s: %s; trials go on, and their figures are in %s",
                self._uri,
                _first_line(error),
                self._folder.path,
            )

    def _experiment(self) -> str:
        name = f"sma-eval/{self._folder.study.name}"
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        # Beside the database, or artifacts would land in whatever folder the command ran in.
        file = Path(self._uri.removeprefix(_SQLITE)).resolve()
        local = self._uri.startswith(_SQLITE)
        location = (file.parent / "artifacts").as_uri() if local else None
        return self._client.create_experiment(name, artifact_location=location)

    def _study_runs(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{STUDY_TAG}` = '{self._folder.key}'",
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create_parent(self) -> Run:
        study = self._folder.study
        tags = {
            STUDY_TAG: self._folder.key,
            "sma.study_digest": study.digest,
            "sma.dataset_digest": self._folder.dataset_digest,
            "sma.folder": str(self._folder.path),
        }
        return self._client.create_run(self.experiment_id, tags=tags, run_name=study.name)

    def _describe_parent(self) -> None:
        if _is_described(self._parent):
            return
        self._client.log_artifact(self.parent_id, str(self._folder.path / "study.json"))
        task = self._folder.study.task.model_dump(mode="json")
        self._describe(self._parent, {"task": task})

    def _run(self, trial: Trial) -> Run:
        if trial.id not in self._runs:
            # A column of the UI is too narrow for whole labels, which often begin alike.
            short = with_short_name(trial, self._names)
            tags = {
                STUDY_TAG: self._folder.key,
                TRIAL_TAG: trial.id,
                "mlflow.parentRunId": self.parent_id,
                "sma.arm": short.arm,
                "sma.policy": policy_level(short),
                "sma.pool": short.pool,
            }
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=short.label)
            self._runs[trial.id] = run
            self._last_step[trial.id] = -1
        if not _is_described(self._runs[trial.id]):
            model = {k: v for k, v in trial.model.items() if k not in ("policy", "pool")}
            # First what tells one trial from another at sight, then every field for filters.
            factors = {
                "arm": trial.arm,
                "policy": trial.policy,
                "pool": trial.pool,
                "target_rate": trial.target_rate,
                "nuisance": trial.nuisance_label,
                "seed": trial.seed,
            }
            told = {name: value for name, value in factors.items() if value not in (None, "")}
            chosen = {
                "policy": trial.model["policy"],
                "pool": dict(enumerate(trial.model["pool"])),
                "model": model,
                "training": trial.training,
            }
            self._describe(self._runs[trial.id], {**told, **dict(leaves(chosen))})
            self._runs[trial.id] = self._client.get_run(self._runs[trial.id].info.run_id)
        return self._runs[trial.id]

    def _describe(self, run: Run, content: Mapping[str, Any]) -> None:
        """Log a run's parameters, and its data set last: it says that all are there."""
        params = [Param(name, str(value)) for name, value in leaves(content)]
        for i in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run.info.run_id, params=params[i : i + _MAX_PARAMS])
        dataset = Dataset(
            name=self._folder.dataset_path.name,
            digest=self._folder.dataset_digest[:12],
            source_type="local",
            source=str(self._folder.dataset_path),
        )
        self._client.log_inputs(run.info.run_id, datasets=[DatasetInput(dataset)])

    def _logged_step(self, run: Run) -> int:
        history = self._client.get_metric_history(run.info.run_id, f"{_LIVE}/train_loss")
        return max((metric.step for metric in history), default=-1)

    def _flush_trial(self, trial: Trial) -> None:
        reports = self._reports.get(trial.id, [])
        run = self._run(trial)
        # A trial that went on from a checkpoint repeats the steps after it, number by number.
        fresh = [report for report in reports if report.step > self._last_step[trial.id]]
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{_LIVE}/{name}", value, now, report.step)
            for report in fresh
            for name, value in report.metrics.items()
        ]
        for i in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run.info.run_id, metrics=metrics[i : i + _MAX_METRICS])
        if fresh and trial.id not in self._live:
            # It may have ended before: its study went on and tried it again.
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._client.set_tag(run.info.run_id, "sma.status", "running")
            self._live.add(trial.id)
        if fresh:
            self._last_step[trial.id] = fresh[-1].step
        self._reports.pop(trial.id, None)

    def _end(self, record: TrialRecord) -> None:
        run = self._client.get_run(self._run(record.trial).info.run_id)
        status = _ENDS.get(record.status, "FAILED")
        note = record.reason or ""
        if run.info.status == status and run.data.tags.get(_NOTE, "") == note:
            return
        # An empty note, too: a trial that was tried again may have failed before.
        tags = [RunTag("sma.status", record.status), RunTag(_NOTE, note)]
        if record.checkpoint is not None:
            tags.append(RunTag("sma.checkpoint", record.checkpoint))
        # The run's own start as timestamp: written twice, such a point is the same point.
        metrics = [
            Metric(name, value, run.info.start_time, record.step)
            for name, value in _figures(record)
        ]
        self._client.log_batch(run.info.run_id, metrics=metrics, tags=tags)
        self._client.set_terminated(run.info.run_id, status=status)

    def _interrupt(self, trial: Trial) -> None:
        """End the run of a trial whose study stopped; more reports make it live again."""
        self._flush_trial(trial)
        run_id = self._runs[trial.id].info.run_id
        self._client.set_tag(run_id, "sma.status", "interrupted")
        self._client.set_terminated(run_id, status="KILLED")


def _never_ran(record: TrialRecord) -> bool:
    """Whether a trial was stopped before it began: it has no run."""
    return record.status == "stopped" and not record.step


def _is_described(run: Run) -> bool:
    return run.inputs is not None and bool(run.inputs.dataset_inputs)


def _figures(record: TrialRecord) -> Iterator[tuple[str, float]]:
    result = record.result
    if result is None:
        return
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        for name, value in metrics.items():
            yield f"{split}/{name}", value
    for layer, rates in enumerate(result.activation):
        for m, (member, rate) in enumerate(zip(record.trial.model["pool"], rates, strict=True)):
            yield f"activation/layer_{layer}.{m}_{member['kind']}", rate
    for name in _COSTS:
        if (value := getattr(result, name)) is not None:
            yield f"cost/{name}", float(value)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
