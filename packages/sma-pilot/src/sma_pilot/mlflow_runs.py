"""Runs of an MLflow store: found by tags, written in few calls, brought up to date in place.

What `tracking` and `mlflow_looks` are made of.
"""

import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import sma_pilot.mlflow_environment  # noqa: F401  (before MLflow)

with warnings.catch_warnings():
    # Of its own type hints and of its own database code: nothing that a user could mend.
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Metric, Param, Run, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from sma_pilot.dashboard import VIEW_TAG, shared_view, view_link
from sma_pilot.errors import TrackingError
from sma_pilot.plan import Plan
from sma_pilot.report.entries import ARM_TAG, LOOK_TAG, PLAN_TAG, STAGE_TAG, Entries
from sma_pilot.report.markdown import escape_markdown
from sma_pilot.report.monitor_entries import look_metrics
from sma_pilot.report.svg import Drawing
from sma_pilot.store import artifacts_beside, check_database, database_of, store_uri
from sma_pilot.tracking_server import require_answer

NOTE_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"
MOST_TAG = 8000
"""Characters of a run's tag that MLflow keeps."""
_MOST_VIEW = 20_000  # characters of an experiment's tag that MLflow accepts
_MOST_METRICS = 1000  # of one batch
_MOST_PARAMS = 100
_SOURCE = {"mlflow.source.name": "sma-pilot", "mlflow.source.type": "LOCAL"}
_PLOTS = "plots"


class RunWriter:
    """Finds and writes the runs of one plan, and of one of its stages, in one store."""

    def __init__(self, plan: Plan, store: str, stage: str = "") -> None:
        self._plan = plan
        self._stage = stage
        self._uri = store
        self._database = database_of(store)
        if self._database is not None:
            make_database(self._database)
        self._client = MlflowClient(tracking_uri=store)
        self._experiment = self._find_experiment()
        self._runs = self._find_runs()

    def _find_experiment(self) -> Experiment:
        name = f"sma-pilot/{self._plan.name}"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return found
        location = None
        if self._database is not None:
            folder = artifacts_beside(self._database) / self._plan.name
            location = folder.as_uri()
        return self._client.get_experiment(
            self._client.create_experiment(name, artifact_location=location)
        )

    def _find_runs(self) -> dict[str, Run]:
        found = self._client.search_runs(
            [self._experiment.experiment_id],
            filter_string=f"tags.`{PLAN_TAG}` = '{self._plan.digest}'",
        )
        self._is_watched = any(LOOK_TAG in run.data.tags for run in found)
        keys = [(self._key(run.data.tags), run) for run in found]
        return {key: run for key, run in keys if key is not None}

    def _key(self, tags: Mapping[str, str]) -> str | None:
        """Return what a run is called here, by its tags; None for one that others write."""
        if LOOK_TAG in tags or tags.get(STAGE_TAG, "") != self._stage:
            return None
        return tags.get(ARM_TAG, "")

    def _run(self, arm: str, name: str, entries: Entries) -> Run:
        run = self._runs.get(arm)
        if run is not None and any(
            entries.params.get(key) != value for key, value in run.data.params.items()
        ):
            # MLflow never changes a param: a run that says other ones cannot become this one.
            self._client.delete_run(run.info.run_id)
            run = None
        if run is None:
            run = self._client.create_run(
                self._experiment.experiment_id, run_name=name, tags={**entries.tags, **_SOURCE}
            )
        return run

    @contextmanager
    def _open(self, run: Run) -> Iterator[None]:
        """Let the run end as it went: no exception leaves it ``RUNNING``, if the store answers."""
        run_id = run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        try:
            yield
        except BaseException:
            # What went wrong is told, not that it cannot be told to a store that went away.
            with suppress(TrackingError, MlflowException, OSError):
                require_answer(self._uri)  # or MLflow would try for half a minute, run by run
                self._client.set_terminated(run_id, status="FAILED")
            raise
        self._client.set_terminated(run_id, status="FINISHED")

    def _log(self, run: Run, entries: Entries, model: LoggedModel | None = None) -> None:
        """Write what the run does not say yet, in as few calls as there can be."""
        run_id, old = run.info.run_id, run.data
        now = int(time.time() * 1000)
        model_id = None if model is None else model.model_id
        points = [(key, value, 0) for key, value in entries.metrics.items()]
        points = [point for point in points if old.metrics.get(point[0]) != point[1]]
        for key, curve in entries.curves.items():
            history = self._client.get_metric_history(run_id, key) if key in old.metrics else []
            known = {(point.step, point.value) for point in history}
            points += [(key, value, step) for step, value in curve if (step, value) not in known]
        # A figure cannot be taken back, and one that is not measured any more must not stand.
        stale = old.metrics.keys() - entries.metrics.keys() - entries.curves.keys()
        points += [(key, math.nan, 0) for key in stale if not math.isnan(old.metrics[key])]
        metrics = [
            Metric(key, value, now, step, model_id=model_id, run_id=run_id)
            for key, value, step in points
        ]
        params = [Param(*item) for item in entries.params.items() if item[0] not in old.params]
        tags = [RunTag(*item) for item in entries.tags.items()]
        self._client.log_batch(run_id, tags=tags)
        for i in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[i : i + _MOST_PARAMS])
        for i in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(run_id, metrics=metrics[i : i + _MOST_METRICS])

    def _log_files_and_plots(
        self, run: Run, files: Iterable[Path], drawings: Mapping[str, Drawing]
    ) -> None:
        run_id, uri = run.info.run_id, run.info.artifact_uri
        assert uri is not None  # noqa: S101  (every run of a store has one)
        if any(file.path == _PLOTS for file in self._client.list_artifacts(run_id)):
            # A plot that is not drawn any more must not stand beside those that are.
            get_artifact_repository(uri, tracking_uri=self._uri).delete_artifacts(_PLOTS)
        for path in files:
            if path.exists():
                self._client.log_artifact(run_id, str(path))
        with tempfile.TemporaryDirectory() as scratch:
            for name, drawing in drawings.items():
                (Path(scratch) / f"{name}.png").write_bytes(drawing.png())
            self._client.log_artifacts(run_id, scratch, _PLOTS)

    def _describe_experiment(
        self, gates: Iterable[str], arms: Iterable[str], *, looks: bool = False
    ) -> None:
        """Say what the experiment is, and how its page shows runs."""
        experiment_id, plan = self._experiment.experiment_id, self._plan
        name, about = escape_markdown(plan.name), escape_markdown(plan.description)
        note = f"**{name}** [charts of pilots and arms]({view_link(experiment_id)}) {about}"
        self._client.set_experiment_tag(experiment_id, NOTE_TAG, note)
        watched = look_metrics(plan) if self._is_watched else ()
        view = shared_view(gates, arms, looks=looks, watched=watched)
        if len(view) <= _MOST_VIEW:
            self._client.set_experiment_tag(experiment_id, VIEW_TAG, view)


def make_database(path: Path) -> None:
    """Make the database whole or not at all: half of its tables would be taken for damage."""
    if path.exists():
        check_database(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    SqlAlchemyStore(store_uri(temporary), artifacts_beside(path).as_uri()).engine.dispose()
    temporary.replace(path)
