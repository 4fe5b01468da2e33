"""MLflow: an experiment for each plan's name, a run for each pilot, a child run for each arm.

A pilot in stages has a child run for each stage, and the arms are children of these.

With `mlflow_runs`, on which it stands, the only module that writes to MLflow. Runs are found by
tags, never by name: tracking a pilot again brings its runs up to date. What they say is in
`report.entries`; this module writes it.
"""

import json
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sma_pilot.mlflow_runs import (  # the first import of mlflow, and sets it up
    MOST_TAG,
    NOTE_TAG,
    PARENT_TAG,
    RunWriter,
)

with warnings.catch_warnings():
    # Of its own type hints and of its own database code: nothing that a user could mend.
    warnings.simplefilter("ignore")
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModel,
        LoggedModelOutput,
        Run,
    )
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

from sma_core.checkpoint import CARD_FILE, WEIGHTS_FILE, read_card
from sma_pilot import serve_checkpoint
from sma_pilot.decision.record import Decision
from sma_pilot.decision.verification import verify
from sma_pilot.errors import RunError, TrackingError
from sma_pilot.judge.measurements import CANDIDATE
from sma_pilot.mlflow_access import meaning_of, quieten
from sma_pilot.mlflow_looks import LooksRecorder
from sma_pilot.monitor.look import load_looks
from sma_pilot.registry import register
from sma_pilot.report.entries import (
    PLAN_TAG,
    RECORD_TAG,
    Entries,
    arm_entries,
    pilot_entries,
)
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.markdown import decision_markdown, verdict_markdown
from sma_pilot.report.page import draw
from sma_pilot.report.stages_entries import stage_entries, stages_entries, standing_markdown
from sma_pilot.report.stages_plot import course_plot
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.standing import Standing, standing
from sma_pilot.tracking_server import printable, require_answer

WEIGHTS_TAG = "sma.weights_sha256"
_MOST_DECISIONS = 3000  # of the characters of a tag, for who signed what


def track(run_path: Path, store: str, stage: str | None = None) -> str:
    """Record a judged run in MLflow, or bring its record up to date.

    Parameters
    ----------
    run_path : Path
        The run folder.
    store : str
        Address of the tracking store, a server's or a database's; an ``sqlite:///`` one is made
        when it is not there.
    stage : str, optional
        Of a pilot in stages: the only one that changed since the last time. By default all are
        recorded.

    Returns
    -------
    str
        Id of the pilot's MLflow run.

    Raises
    ------
    RunError
        When the run was not judged or a part of it is damaged.
    TrackingError
        When no server answers, or the store cannot be opened or written. A run of the pilot that
        was begun then ends as ``FAILED``, and tracking again mends it.
    """
    quieten()
    run = RunFolder.open(run_path)
    staged = run.stage is None and bool(run.load_plan().stages)
    evidence = None if staged else Evidence.read(run_path)
    require_answer(store)
    try:
        if evidence is None:
            return _StagesRecorder(run, standing(run), store).record(stage)
        return _Recorder(evidence, store).record()
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{printable(store, store)}: {run_path} cannot be recorded: "
            f"{meaning_of(error, store)}; mend the store and run `sma-pilot track` again"
        ) from error


def track_looks(run_path: Path, store: str) -> list[str]:
    """Record the looks after a go in MLflow, one run each, or bring their records up to date.

    Parameters
    ----------
    run_path : Path
        The run folder.
    store : str
        As of `track`.

    Returns
    -------
    list of str
        Ids of their runs, the first look first.

    Raises
    ------
    RunError
        When a look was changed, or is missing.
    TrackingError
        When the store cannot be opened or written.
    """
    run = RunFolder.open(run_path)
    looks = load_looks(run).looks
    if not looks:
        return []
    quieten()
    require_answer(store)
    try:
        return LooksRecorder(run, store).record(looks)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{printable(store, store)}: the looks of {run_path} cannot be recorded: "
            f"{meaning_of(error, store)}; mend the store and run `sma-pilot track` again"
        ) from error


class _StagesRecorder(RunWriter):
    """Writes a pilot in stages: its own run over all looks, and a child for each stage."""

    def __init__(self, run: RunFolder, now: Standing, store: str) -> None:
        super().__init__(now.plan, store)
        self._folder = run
        self._now = now
        self._store = store

    def record(self, only: str | None) -> str:
        now, folder = self._now, self._folder
        entries = stages_entries(now, folder)
        pilot = self._run("", folder.path.resolve().name, entries)
        drawing = course_plot(now)
        with self._open(pilot):
            self._log(pilot, entries)
            drawings = {} if drawing is None else {drawing.name: drawing}
            self._log_files_and_plots(pilot, (folder.report, folder.plan), drawings)
            note = standing_markdown(now, folder.path.name, MOST_TAG)
            self._client.set_tag(pilot.info.run_id, NOTE_TAG, note)
            arms: set[str] = set()
            for place, own in enumerate(now.stages):
                # The first stage has the model, whose registered version tells how all stand.
                if own.looks and (place == 0 or only in (None, own.stage.name)):
                    evidence = Evidence.read(folder.at(own.stage.name).path)
                    recorder = _Recorder(evidence, self._store, now=now, parent=pilot)
                    recorder.record()
                    arms |= recorder.arm_metrics
            self._describe_experiment(entries.curves, arms, looks=True)
        return pilot.info.run_id


class _Recorder(RunWriter):
    """Writes one judged run, a pilot's or a stage's, with its arms."""

    def __init__(
        self,
        evidence: Evidence,
        store: str,
        *,
        now: Standing | None = None,
        parent: Run | None = None,
    ) -> None:
        super().__init__(evidence.plan, store, evidence.run.stage or "")
        self._evidence = evidence
        self._unchanged = not evidence.decisions or verify(evidence.run).is_intact
        self._now = now
        self._parent = parent
        self.arm_metrics: set[str] = set()
        self._check_records()

    def record(self) -> str:
        evidence, plan, now = self._evidence, self._plan, self._now
        own = now and next(own for own in now.stages if own.stage.name == self._stage)
        if own is None:
            name, entries = (
                evidence.run.path.resolve().name,
                pilot_entries(evidence, unchanged=self._unchanged),
            )
        else:
            name, entries = (
                f"{own.stage.name} {plan.digest[:8]}",
                stage_entries(evidence, own, unchanged=self._unchanged),
            )
        # One model is fitted for all stages: the first one's run has it.
        has_model = now is None or own is now.stages[0]
        arms = {arm: arm_entries(evidence, arm) for arm in plan.named_arms()}
        self.arm_metrics = {name for one in arms.values() for name in (*one.metrics, *one.curves)}
        pilot = self._run("", name, entries)
        with self._open(pilot):
            self._log(pilot, entries)
            self._log_dataset(pilot)
            files = (evidence.run.report, evidence.run.result, evidence.run.plan)
            self._log_files_and_plots(pilot, files, draw(evidence))
            for arm, one in arms.items():
                kind = plan.named_arms()[arm].kind
                run = self._run(arm, f"{arm} ({kind}) {plan.digest[:8]}", one)
                with self._open(run):
                    logs_model = arm == CANDIDATE and has_model
                    model = self._log_model(run, pilot) if logs_model else None
                    self._log(run, one, model)
                    if logs_model:
                        self._register(run, model)
                    self._client.set_tag(run.info.run_id, PARENT_TAG, pilot.info.run_id)
            self._describe(pilot, entries)
        return pilot.info.run_id

    def _check_records(self) -> None:
        """Refuse a run folder that lost a decision which the store knows of."""
        known = self._runs[""].data.tags.get(RECORD_TAG) if "" in self._runs else None
        if known is not None and known not in {own.sha256 for own in self._evidence.decisions}:
            folder = self._evidence.run.decisions
            raise RunError(
                f"{folder}: MLflow knows of a decision that is not here any more, record {known}; "
                "put it back from a copy"
            )

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
            self._decision_note()
            if self._now is None
            else standing_markdown(self._now, self._evidence.run.root.name, _MOST_DECISIONS),
            verdict=self._evidence.result.verdict if self._now is None else self._now.verdict,
            decision=self._decision(),
        )

    def _decision(self) -> Decision | None:
        """Return what was signed about the candidate, of a pilot in stages on the way as a whole.

        A go for a stage on the way is one to go on, and none to serve the plant by this model.
        """
        if self._now is None:
            return (
                self._evidence.decisions[-1]
                if self._evidence.decisions and self._unchanged
                else None
            )
        current, last = self._now.current, self._now.stages[-1]
        if (
            current.decision is None
            or not verify(self._evidence.run.at(current.stage.name)).is_intact
        ):
            return None
        return current.decision if current is last or current.decision.decision == "no-go" else None

    def _decision_note(self) -> str:
        return decision_markdown(
            self._evidence.decisions, unchanged=self._unchanged, length=_MOST_DECISIONS
        )

    def _describe(self, pilot: Run, entries: Entries) -> None:
        run_id, decision = pilot.info.run_id, self._decision_note()
        verdict = verdict_markdown(self._evidence.result, MOST_TAG - len(decision) - 2)
        self._client.set_tag(run_id, NOTE_TAG, f"{decision}\n\n{verdict}".lstrip())
        if self._parent is not None:
            self._client.set_tag(run_id, PARENT_TAG, self._parent.info.run_id)
        elif not self._stage:
            self._describe_experiment(entries.metrics, self.arm_metrics)


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
