"""MLflow: one run per trial under one parent run per study folder.

The only file that imports mlflow. Runs are found by tags, never by name, and a metric is never
logged for a step that the run already has: a study that goes on in another process goes on in the
same runs, without duplicates.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Stdout is for results: a server's addresses of every run would stand amid them.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A study ends no later for a store that is away: seconds, not the minutes of mlflow's patience.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag

from sma_eval.dashboard import study_views, view_links
from sma_eval.entries import (
    LIVE,
    STATUS_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    description,
    factor_tags,
    figures,
)
from sma_eval.errors import TrackingError, first_line
from sma_eval.folder import StudyFolder
from sma_eval.naming import leaves, names_of, with_short_name
from sma_eval.records import Report, TrialRecord
from sma_eval.space import Trial

_SQLITE = "sqlite:///"
_NOTE = "mlflow.note.content"
_ENDS = {"finished": "FINISHED", "stopped": "KILLED"}
# Of one log_batch, which takes a thousand things in all.
_MAX_METRICS = 800
_MAX_PARAMS = 100


def default_uri(folder: StudyFolder) -> str:
    """Return the store inside the study folder."""
    return f"{_SQLITE}{folder.path / 'mlflow.db'}"


@dataclass
class _TrialRun:
    """What is known of a trial's run without asking the store."""

    run_id: str
    began: int
    """Milliseconds since 1970."""
    described: bool = False
    last_step: int | None = -1
    """Of its reports; None: to be looked up."""
    end: tuple[str, str] | None = None
    """Status of MLflow's and note, once it has ended."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return what a run that was found in the store tells."""
        running = run.info.status == "RUNNING"
        return cls(
            run_id=run.info.run_id,
            began=run.info.start_time,
            described=_is_described(run),
            last_step=None,
            end=None if running else (run.info.status, run.data.tags.get(_NOTE, "")),
        )


class StudyRuns:
    """The runs of a study in an MLflow store.

    Parameters
    ----------
    folder
        The study folder.
    uri
        Of the tracking store.

    Raises
    ------
    TrackingError
        When the store cannot be opened.
    """

    def __init__(self, folder: StudyFolder, uri: str) -> None:
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._folder = folder
        self.uri = uri
        self._names = names_of(folder.trials)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._experiment()
            runs = {run.data.tags.get(TRIAL_TAG, ""): run for run in self._study_runs()}
            self._parent = runs.pop("", None) or self._create_parent()
            self._describe_parent()
            self._describe_experiment()
            self._runs = {trial: _TrialRun.of(run) for trial, run in runs.items()}
            self._client.update_run(self.parent_id, status="RUNNING")
        except Exception as error:  # each kind of store has errors of its own
            raise TrackingError(
                f"tracking store {uri}: cannot be opened: {first_line(error)}; "
                "start its server or give another --tracking-uri"
            ) from error

    @property
    def parent_id(self) -> str:
        """Run id of the study."""
        return self._parent.info.run_id

    def __contains__(self, trial: Trial) -> bool:
        return trial.id in self._runs

    def write(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """Bring a trial's run up to date, in as few transactions as can be.

        Whatever interrupts it, the same call again completes it.

        Parameters
        ----------
        record
            The trial as it stands now.
        reports
            That came since the last call. A trial that went on from a checkpoint repeats the steps
            after it, number by number; those that the run has are left out.
        """
        run = self._run(record.trial)
        if run.last_step is None:
            run.last_step = self._logged_step(run)
        fresh = [report for report in reports if report.step > run.last_step]
        end = (_ENDS.get(record.status, "FAILED"), record.reason or "") if record.ended else None
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{LIVE}/{name}", value, now, report.step)
            for report in fresh
            for name, value in report.metrics.items()
        ]
        tags = []
        if end is not None and end != run.end:
            # The run's own start as timestamp: written twice, such a point is the same point.
            metrics += [
                Metric(name, value, run.began, record.step) for name, value in figures(record)
            ]
            # An empty note, too: a trial that was tried again may have failed before.
            tags = [RunTag(STATUS_TAG, record.status), RunTag(_NOTE, end[1])]
            if record.checkpoint is not None:
                tags.append(RunTag("sma.checkpoint", record.checkpoint))
        elif end is None and fresh and run.end is not None:
            # It had ended: its study went on and tried it again.
            tags = [RunTag(STATUS_TAG, "running")]
            self._client.update_run(run.run_id, status="RUNNING")
            run.end = None
        params = [] if run.described else _params(description(record.trial))
        self._log(run, metrics, params, tags)
        if fresh:
            run.last_step = fresh[-1].step
        if not run.described:  # last: it says that all parameters are there
            self._log_dataset(run.run_id)
            run.described = True
        if end is not None and end != run.end:
            self._client.set_terminated(run.run_id, status=end[0])
            run.end = end

    def interrupt(self, record: TrialRecord, reports: Sequence[Report]) -> None:
        """End the run of a trial whose study stopped; more reports make it live again."""
        self.write(record, reports)
        run = self._run(record.trial)
        self._client.set_tag(run.run_id, STATUS_TAG, "interrupted")
        self._client.set_terminated(run.run_id, status="KILLED")
        run.end = ("KILLED", "")

    def end(self, *, status: str, description: str = "", files: Sequence[Path] = ()) -> None:
        """Describe and end the study's own run.

        Parameters
        ----------
        status
            ``FINISHED`` or ``KILLED``.
        description
            Markdown, shown on the run's page.
        files
            Attached to the run.
        """
        note = "\n\n".join(filter(None, [self._links, description]))
        self._client.set_tag(self.parent_id, _NOTE, note)
        for file in files:
            self._client.log_artifact(self.parent_id, str(file))
        self._client.set_terminated(self.parent_id, status=status)

    def _experiment(self) -> str:
        name = f"sma-eval/{self._folder.study.name}"
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        # Beside the database, or artifacts would land in whatever folder the command ran in.
        file = Path(self.uri.removeprefix(_SQLITE)).resolve()
        local = self.uri.startswith(_SQLITE)
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
        parent = _TrialRun.of(self._parent)
        self._log(parent, [], _params({"task": task}), [])
        self._log_dataset(parent.run_id)

    def _describe_experiment(self) -> None:
        """Link the views that compare the trials; a description that somebody wrote stays."""
        folder, study = self._folder, self._folder.study
        arms = [with_short_name(trial, self._names).arm for trial in folder.trials]
        views = study_views(folder.key, study.objective, dict.fromkeys(arms))
        ours = f"**{study.name}**: "
        present = self._client.get_experiment(self.experiment_id).tags.get(_NOTE, "")
        note = {_NOTE: ours + self._links} if not present or present.startswith(ours) else {}
        for name, value in {**views, **note}.items():
            self._client.set_experiment_tag(self.experiment_id, name, value)
        if _NOTE not in self._parent.data.tags:
            self._client.set_tag(self.parent_id, _NOTE, self._links)

    @property
    def _links(self) -> str:
        return view_links(self._folder.key, self.experiment_id)

    def _run(self, trial: Trial) -> _TrialRun:
        """Return a trial's run, made if there is none."""
        if trial.id not in self._runs:
            short = with_short_name(trial, self._names)
            tags = {
                STUDY_TAG: self._folder.key,
                TRIAL_TAG: trial.id,
                "mlflow.parentRunId": self.parent_id,
                **factor_tags(short),
                STATUS_TAG: "running",
            }
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=short.label)
            self._runs[trial.id] = _TrialRun(run.info.run_id, run.info.start_time)
        return self._runs[trial.id]

    def _log(
        self, run: _TrialRun, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        while metrics or params or tags:
            self._client.log_batch(
                run.run_id, metrics=metrics[:_MAX_METRICS], params=params[:_MAX_PARAMS], tags=tags
            )
            metrics, params, tags = metrics[_MAX_METRICS:], params[_MAX_PARAMS:], []

    def _log_dataset(self, run_id: str) -> None:
        dataset = Dataset(
            name=self._folder.dataset_path.name,
            digest=self._folder.dataset_digest[:12],
            source_type="local",
            source=str(self._folder.dataset_path),
        )
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset)])

    def _logged_step(self, run: _TrialRun) -> int:
        history = self._client.get_metric_history(run.run_id, f"{LIVE}/train_loss")
        return max((metric.step for metric in history), default=-1)


def _params(content: Mapping[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in leaves(content)]


def _is_described(run: Run) -> bool:
    return run.inputs is not None and bool(run.inputs.dataset_inputs)
