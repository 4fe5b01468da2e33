"""MLflow: an experiment for each plan's name, a run for each pilot, a child run for each arm.

The only module that imports mlflow. Runs are found by tags, never by name: tracking a pilot again
brings its runs up to date. What they say is in `report.entries`; this module writes it.
"""

import json
import logging
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Or the lock file of whatever project the command runs in would go into the model.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")

import numpy as np

with warnings.catch_warnings():
    # Of its own type hints and of its own database code: nothing that a user could mend.
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        Experiment,
        InputTag,
        LoggedModel,
        LoggedModelOutput,
        Metric,
        Param,
        Run,
        RunTag,
    )
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.types import Schema, TensorSpec

from sma_core.checkpoint import CARD_FILE, WEIGHTS_FILE, read_card
from sma_pilot import serve_checkpoint
from sma_pilot.dashboard import VIEW_TAG, shared_view, view_link
from sma_pilot.decision.verification import verify
from sma_pilot.errors import RunError, TrackingError
from sma_pilot.judge.measurements import CANDIDATE
from sma_pilot.registry import register
from sma_pilot.report.entries import (
    ARM_TAG,
    PLAN_TAG,
    RECORD_TAG,
    Entries,
    arm_entries,
    pilot_entries,
)
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.markdown import decision_markdown, escape_markdown, verdict_markdown
from sma_pilot.report.page import draw
from sma_pilot.store import artifacts_beside, check_database, database_of, store_uri

WEIGHTS_TAG = "sma.weights_sha256"
_NOTE_TAG = "mlflow.note.content"
_PARENT_TAG = "mlflow.parentRunId"
_MOST_TAG = 8000  # characters of a run's tag that MLflow keeps
_MOST_DECISIONS = 3000  # of these, for who signed what
_MOST_VIEW = 20_000  # characters of an experiment's tag that MLflow accepts
_MOST_METRICS = 1000  # of one batch
_MOST_PARAMS = 100
_SOURCE = {"mlflow.source.name": "sma-pilot", "mlflow.source.type": "LOCAL"}
_PLOTS = "plots"


def track(run_path: Path, store: str) -> str:
    """Record a judged run in MLflow, or bring its record up to date.

    Parameters
    ----------
    run_path : Path
        The run folder.
    store : str
        Address of the tracking store; an ``sqlite:///`` one is made when it is not there.

    Returns
    -------
    str
        Id of the pilot's MLflow run.

    Raises
    ------
    RunError
        When the run was not judged or a part of it is damaged.
    TrackingError
        When the store cannot be opened or written. The pilot's run then ends as ``FAILED``, and
        tracking again mends it.
    """
    evidence = Evidence.read(run_path)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        return _Recorder(evidence, store).record()
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{store}: {run_path} cannot be recorded: {error}; mend the store and run "
            "`sma-pilot track` again"
        ) from error


class _Recorder:
    """Writes one pilot to one store."""

    def __init__(self, evidence: Evidence, store: str) -> None:
        self._evidence = evidence
        self._unchanged = not evidence.decisions or verify(evidence.run).is_intact
        self._database = database_of(store)
        if self._database is not None:
            _make_database(self._database)
        self._client = MlflowClient(tracking_uri=store)
        self._experiment = self._find_experiment()
        self._runs = self._find_runs()
        self._check_records()

    def record(self) -> str:
        plan, name = self._evidence.plan, self._evidence.run.path.resolve().name
        entries = pilot_entries(self._evidence, unchanged=self._unchanged)
        arms = {arm: arm_entries(self._evidence, arm) for arm in plan.named_arms()}
        pilot = self._run("", name, entries)
        with self._open(pilot):
            self._log(pilot, entries)
            self._log_dataset(pilot)
            self._log_files(pilot)
            for arm, own in arms.items():
                kind = plan.named_arms()[arm].kind
                run = self._run(arm, f"{arm} ({kind}) {plan.digest[:8]}", own)
                with self._open(run):
                    model = self._log_model(run, pilot) if arm == CANDIDATE else None
                    self._log(run, own, model)
                    if arm == CANDIDATE:
                        self._register(run, model)
                    self._client.set_tag(run.info.run_id, _PARENT_TAG, pilot.info.run_id)
            self._describe(pilot, entries, arms)
        return pilot.info.run_id

    def _find_experiment(self) -> Experiment:
        name = f"sma-pilot/{self._evidence.plan.name}"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return found
        location = None
        if self._database is not None:
            folder = artifacts_beside(self._database) / self._evidence.plan.name
            location = folder.as_uri()
        return self._client.get_experiment(
            self._client.create_experiment(name, artifact_location=location)
        )

    def _find_runs(self) -> dict[str, Run]:
        found = self._client.search_runs(
            [self._experiment.experiment_id],
            filter_string=f"tags.`{PLAN_TAG}` = '{self._evidence.plan.digest}'",
        )
        return {run.data.tags.get(ARM_TAG, ""): run for run in found}

    def _check_records(self) -> None:
        """Refuse a run folder that lost a decision which the store knows of."""
        known = self._runs[""].data.tags.get(RECORD_TAG) if "" in self._runs else None
        if known is not None and known not in {own.sha256 for own in self._evidence.decisions}:
            folder = self._evidence.run.decisions
            raise RunError(
                f"{folder}: MLflow knows of a decision that is not here any more, record {known}; "
                "put it back from a copy"
            )

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
        """Let the run end as it went: an exception leaves none ``RUNNING``."""
        run_id = run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        try:
            yield
        except BaseException:
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

    def _log_dataset(self, run: Run) -> None:
        dataset = self._evidence.dataset
        card = dataset.card
        columns = [("double", channel.name) for channel in card.numeric]
        columns += [("string", channel.name) for channel in card.categorical]
        schema = [{"name": name, "type": kind, "required": False} for kind, name in columns]
        inputs = []
        for name, split in card.splits.items():
            profile = {
                "rows": split.rows,
                "sequences": split.sequences,
                "entities": len(card.entities),
                "first_time_ns": split.first_time_ns,
                "last_time_ns": split.last_time_ns,
            }
            described = Dataset(
                name=card.name,
                digest=split.sha256[:16],
                source_type="local",
                source=json.dumps({"uri": (dataset.folder / split.file).resolve().as_uri()}),
                schema=json.dumps({"mlflow_colspec": schema}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(described, [InputTag("mlflow.data.context", name)]))
        self._client.log_inputs(run.info.run_id, datasets=inputs)

    def _log_files(self, run: Run) -> None:
        run_id, folder = run.info.run_id, self._evidence.run
        uri = run.info.artifact_uri
        assert uri is not None  # noqa: S101  (every run of a store has one)
        if any(file.path == _PLOTS for file in self._client.list_artifacts(run_id)):
            # A plot that is not drawn any more must not stand beside those that are.
            get_artifact_repository(uri).delete_artifacts(_PLOTS)
        for path in (folder.report, folder.result, folder.plan):
            if path.exists():
                self._client.log_artifact(run_id, str(path))
        with tempfile.TemporaryDirectory() as scratch:
            for name, drawing in draw(self._evidence).items():
                (Path(scratch) / f"{name}.png").write_bytes(drawing.png())
            self._client.log_artifacts(run_id, scratch, _PLOTS)

    def _log_model(self, run: Run, pilot: Run) -> LoggedModel | None:
        """Attach the candidate, unless it is there already or is no sequence model."""
        folder = self._evidence.run.models / CANDIDATE
        if not folder.is_dir():
            raise RunError(f"{folder}: no fitted model here; run `sma-pilot fit` again")
        if not (folder / CARD_FILE).exists():
            self._client.log_artifacts(run.info.run_id, str(folder), "model")
            return None
        card = read_card(folder)
        run_id, experiment_id = run.info.run_id, self._experiment.experiment_id
        tags = {WEIGHTS_TAG: card["weights_sha256"], PLAN_TAG: self._evidence.plan.digest}
        for old in self._client.search_logged_models(
            [experiment_id], filter_string=f"source_run_id = '{run_id}'"
        ):
            if old.tags.get(WEIGHTS_TAG) == card["weights_sha256"] and old.status == "READY":
                return old
            self._client.delete_logged_model(old.model_id)
        model = self._client.create_logged_model(
            experiment_id, CANDIDATE, run_id, tags, model_type=card["architecture"]
        )
        with tempfile.TemporaryDirectory() as scratch:
            packed = Path(scratch) / "model"
            _pack_model(folder, packed, Model(model_id=model.model_id, run_id=run_id))
            self._client.log_model_artifacts(model.model_id, str(packed))
        for owner in (run, pilot):
            output = LoggedModelOutput(model.model_id, step=0)
            self._client.log_outputs(owner.info.run_id, [output])
        return self._client.finalize_logged_model(model.model_id, "READY")

    def _register(self, run: Run, model: LoggedModel | None) -> None:
        register(
            self._client,
            self._evidence,
            run.info.run_id,
            f"{run.info.artifact_uri}/model" if model is None else model.artifact_location,
            None if model is None else model.model_id,
            self._decision_note(),
            unchanged=self._unchanged,
        )

    def _decision_note(self) -> str:
        return decision_markdown(
            self._evidence.decisions, unchanged=self._unchanged, length=_MOST_DECISIONS
        )

    def _describe(self, pilot: Run, entries: Entries, arms: dict[str, Entries]) -> None:
        evidence, experiment_id = self._evidence, self._experiment.experiment_id
        decision = self._decision_note()
        verdict = verdict_markdown(evidence.result, _MOST_TAG - len(decision) - 2)
        self._client.set_tag(pilot.info.run_id, _NOTE_TAG, f"{decision}\n\n{verdict}".lstrip())
        name, about = (
            escape_markdown(evidence.plan.name),
            escape_markdown(evidence.plan.description),
        )
        note = f"**{name}** [charts of pilots and arms]({view_link(experiment_id)}) {about}"
        self._client.set_experiment_tag(experiment_id, _NOTE_TAG, note)
        names = {name for own in arms.values() for name in (*own.metrics, *own.curves)}
        view = shared_view(entries.metrics, names)
        if len(view) <= _MOST_VIEW:
            self._client.set_experiment_tag(experiment_id, VIEW_TAG, view)


def _make_database(path: Path) -> None:
    """Make the database whole or not at all: half of its tables would be taken for damage."""
    if path.exists():
        check_database(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    SqlAlchemyStore(store_uri(temporary), artifacts_beside(path).as_uri()).engine.dispose()
    temporary.replace(path)


def _pack_model(checkpoint: Path, out: Path, model: Model) -> None:
    """Write a checkpoint as an MLflow model: its two files, and the code that reads them."""
    code = Path(serve_checkpoint.__file__)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Of no example of inputs: the signature says all that one could.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        kept = Path(scratch) / "checkpoint"
        kept.mkdir()
        for name in (CARD_FILE, WEIGHTS_FILE):
            shutil.copy2(checkpoint / name, kept)
        save_model(
            out,
            loader_module=code.stem,
            code_paths=[str(code)],
            data_path=str(kept),
            signature=_signature(read_card(checkpoint)["config"]),
            # Given, or MLflow would load the model in a process of its own to find out.
            pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "sma-core")],
            mlflow_model=model,
        )


def _signature(config: dict[str, Any]) -> ModelSignature:
    inputs, outputs = config["inputs"], config["head"]["outputs"]
    channels = {
        "numeric": (np.dtype(np.float32), inputs["numeric"]),
        "categorical": (np.dtype(np.int64), len(inputs["categorical"])),
    }
    whole = config["head"]["kind"] == "sequence_classification"
    shape = (-1, outputs) if whole else (-1, -1, outputs)
    return ModelSignature(
        inputs=Schema(
            [
                TensorSpec(dtype, (-1, -1, count), name)
                for name, (dtype, count) in channels.items()
                if count
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype(np.float32), shape, "prediction")]),
    )
