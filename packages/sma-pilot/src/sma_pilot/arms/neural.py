"""Arms that are sequence models: the sparse candidate, its dense twin, incumbents, a checkpoint.

They differ in the configuration they fit; all of them score through `neural_scorer`.
"""

import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sma_core.baselines import dense_twin
from sma_core.checkpoint import load_checkpoint
from sma_core.config import ArchitectureConfig, ModelConfig, config_from_dict
from sma_core.dataset import DatasetCard, PreparedDataset
from sma_core.errors import ConfigError
from sma_core.threads import compute_threads
from sma_core.training import TrainingConfig, check_fit, fit
from sma_core.training_state import Progress
from sma_pilot.arms.base import Scorer
from sma_pilot.arms.class_scorer import ClassificationScorer
from sma_pilot.arms.neural_scorer import ClassScorer, ForecastScorer
from sma_pilot.arms.surprise_scorer import SurpriseScorer
from sma_pilot.errors import PlanError
from sma_pilot.plan import CheckpointPlan, Plan, SMAPlan
from sma_pilot.progress import OnProgress
from sma_pilot.targets import class_scores


def head_of(plan: Plan, card: DatasetCard) -> dict[str, Any]:
    """Return the head that the plan's task asks for, in plain form."""
    if plan.task.kind == "forecast_anomaly":
        return {"kind": "forecast", "outputs": len(card.numeric)}
    return {"kind": "step_classification", "outputs": len(card.classes)}


def inputs_of(card: DatasetCard) -> dict[str, Any]:
    """Return the input channels that the data set has, in plain form."""
    vocabularies = [len(channel.vocabulary) for channel in card.categorical]
    return {"numeric": len(card.numeric), "categorical": vocabularies}


class NeuralArm:
    """What the arms with a sequence model share.

    Parameters
    ----------
    plan : Plan
    role : str
        Which arm of the plan.
    data : Path
        Folder that relative paths of the plan start from.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._plan = plan
        self._data = data

    def check(self, dataset: PreparedDataset) -> None:
        """See `Arm.check`."""
        config = self.config(dataset.card)
        if not config.causal:
            raise PlanError(
                f"arms.{self.role}.model.bidirectional: a replay gives rows as they came, and "
                "this model would need those after; set it to false"
            )
        try:
            check_fit(config, dataset, self._training())
        except ConfigError as error:
            raise PlanError(f"arms.{self.role}.training.{error}") from error

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`; a fit that was stopped goes on from its last state."""
        stage = f"fit {self.role}"

        def report(progress: Progress) -> None:
            on_progress(stage, progress.step, progress.max_steps)

        training = self._training()
        on_progress(stage, 0, training.max_steps)  # the first step comes seconds later
        # As many threads as the replay has, not as the machine has: sums of floats depend on their
        # number, so the same plan gives the same weights on machines of any size. And the small
        # steps of such models lose more by waiting for each other than they gain.
        with compute_threads(self._plan.replay.threads):
            fit(
                self.config(dataset.card),
                dataset,
                training,
                folder,
                on_progress=report,
                device=self._plan.replay.device,
                provenance={"plan": self._plan.digest, "arm": self.role},
            )
        on_progress(stage, training.max_steps, training.max_steps)  # however early it stopped

    def open(self, folder: Path) -> Scorer:
        """See `Arm.open`."""
        model = load_checkpoint(folder, device=self._plan.replay.device).model.eval()
        if self._plan.task.kind == "forecast_anomaly":
            return ForecastScorer(model, self._plan.task.smoothing)
        if self._plan.task.by_session:
            return SurpriseScorer(model)
        if self._plan.task.by_class:
            return ClassificationScorer(model)
        return ClassScorer(model, class_scores(self._plan.task))

    @abstractmethod
    def config(self, card: DatasetCard) -> Any:
        """Return the architecture that the plan asks for on a data set of that card.

        Raises
        ------
        PlanError
            When a field of the arm's `model` table is wrong.
        """

    def _training(self) -> TrainingConfig:
        return self._training_from(self._table("training"), self.role)

    def _table(self, name: str) -> dict[str, Any]:
        """Return a table of the arm; an empty one of a kind that has none."""
        return getattr(self._plan.named_arms()[self.role], name, {})

    def _training_from(self, table: Mapping[str, Any], role: str) -> TrainingConfig:
        known = [field.name for field in fields(TrainingConfig)]
        for name in table:
            if name not in known:
                raise PlanError(
                    f"arms.{role}.training.{name}: unknown field; the known ones are "
                    f"{', '.join(known)}"
                )
        try:
            return TrainingConfig(**{"seed": self._plan.seed % 2**32, **table})
        except ConfigError as error:
            raise PlanError(f"arms.{role}.training.{error}") from error

    def _model_from(
        self, architecture: str, table: Mapping[str, Any], role: str, card: DatasetCard
    ) -> Any:
        given = {
            "architecture": architecture,
            "inputs": inputs_of(card),
            "head": head_of(self._plan, card),
        }
        for name in given:
            if name in table:
                raise PlanError(
                    f"arms.{role}.model.{name}: cannot be chosen; it follows from the arm's kind, "
                    "the log and the task"
                )
        try:
            return config_from_dict(given | dict(table))
        except ConfigError as error:
            raise PlanError(f"arms.{role}.model.{error}") from error


class SMAArm(NeuralArm):
    """Kind ``sma``: a model with Sparse Modular Activation."""

    def config(self, card: DatasetCard) -> ArchitectureConfig:
        """See `NeuralArm.config`."""
        return self._model_from("sma", self._table("model"), self.role, card)


class TransformerArm(NeuralArm):
    """Kind ``transformer``: a causal Transformer with a window."""

    def config(self, card: DatasetCard) -> ArchitectureConfig:
        """See `NeuralArm.config`."""
        return self._model_from("transformer", self._table("model"), self.role, card)


class GRUArm(NeuralArm):
    """Kind ``gru``: gated recurrent units."""

    def config(self, card: DatasetCard) -> ArchitectureConfig:
        """See `NeuralArm.config`."""
        return self._model_from("gru", self._table("model"), self.role, card)


class DenseTwinArm(NeuralArm):
    """Kind ``dense_twin``: the candidate's model with every sub-module run at every step.

    It trains as the candidate does, less the target rate, which it has no router to steer by;
    a `training` table of its own takes the place of the candidate's.
    """

    def config(self, card: DatasetCard) -> ModelConfig:
        """See `NeuralArm.config`."""
        candidate = self._plan.arm("candidate", SMAPlan)
        return dense_twin(self._model_from("sma", candidate.model, "candidate", card))

    def _training(self) -> TrainingConfig:
        if self._table("training"):
            return super()._training()
        table = dict(self._plan.arm("candidate", SMAPlan).training)
        table.pop("target_rate", None)
        return self._training_from(table, "candidate")


class CheckpointArm(NeuralArm):
    """Kind ``checkpoint``: a model fitted elsewhere, taken as it is.

    `fit` copies it into the run's folder, so that later changes to the original cannot reach a
    pilot that has begun.
    """

    def check(self, dataset: PreparedDataset) -> None:
        """Refuse a checkpoint that was made for other channels, scaling, task or direction."""
        card = dataset.card
        checkpoint = load_checkpoint(self._source)
        config = checkpoint.config
        where = f"arms.{self.role}.checkpoint: {self._checkpoint}"
        wanted = head_of(self._plan, card)
        if (config.head.kind, config.head.outputs) != (wanted["kind"], wanted["outputs"]):
            raise PlanError(
                f"{where}: its head is {config.head.kind} with {config.head.outputs} outputs, "
                f"and task {self._plan.task.kind!r} on this log needs {wanted['kind']} with "
                f"{wanted['outputs']}"
            )
        if not config.causal:
            raise PlanError(f"{where}: the model is bidirectional and cannot run on a stream")
        made_for = checkpoint.card.get("dataset")
        if made_for is None:
            raise PlanError(
                f"{where}: it does not say what data it was fitted on (no data set card), so "
                "nothing tells that its channels are these; save it with its data set card"
            )
        theirs = DatasetCard.from_dict(made_for)
        if self._plan.task.by_class and theirs.classes != card.classes:
            raise PlanError(
                f"{where}: it was fitted on the classes {list(theirs.classes)} and the log gives "
                f"{list(card.classes)}; they must be the same, in the same order"
            )
        _require_same_channels(theirs, card, where)

    def config(self, card: DatasetCard) -> ArchitectureConfig:
        """Return the checkpoint's architecture, whatever the data set."""
        return load_checkpoint(self._source).config

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """Check the checkpoint and copy it."""
        self.check(dataset)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("weights.safetensors", "model.json"):
            temporary = folder / f".{name}"
            shutil.copyfile(self._source / name, temporary)
            temporary.replace(folder / name)

    @property
    def _source(self) -> Path:
        return self._data / self._checkpoint

    @property
    def _checkpoint(self) -> str:
        return self._plan.arm(self.role, CheckpointPlan).checkpoint


def _require_same_channels(theirs: DatasetCard, ours: DatasetCard, where: str) -> None:
    """Raise PlanError unless a row of `ours` means to a model what a row of `theirs` meant."""
    for kind in ("numeric", "categorical"):
        names = [[channel.name for channel in getattr(card, kind)] for card in (theirs, ours)]
        if names[0] != names[1]:
            raise PlanError(
                f"{where}: it was fitted on the {kind} channels {names[0]} and the log gives "
                f"{names[1]}; they must be the same, in the same order"
            )
    for their, our in zip(theirs.categorical, ours.categorical, strict=True):
        if their.vocabulary != our.vocabulary:
            raise PlanError(
                f"{where}: channel {our.name!r} has another vocabulary than at its fit; prepare "
                "the log with the train slice that it was fitted on"
            )
    then, now = _scaling(theirs), _scaling(ours)
    for entity in then.keys() & now.keys():
        for channel, *values in zip(ours.numeric, then[entity], now[entity], strict=True):
            (center, scale), (our_center, our_scale) = values
            if max(abs(center - our_center), abs(scale - our_scale)) > 1e-6 * our_scale:
                raise PlanError(
                    f"{where}: channel {channel.name!r}{entity and f' of {entity!r}'} was scaled "
                    f"with center {center:g} and scale {scale:g} at its fit, and with "
                    f"{our_center:g} and {our_scale:g} here; prepare the log with the train slice "
                    "that it was fitted on"
                )


def _scaling(card: DatasetCard) -> dict[str, list[tuple[float, float]]]:
    """Return centre and scale of each numeric channel: under "" for all, and by entity if known."""
    scaling = {"": [(channel.center, channel.scale) for channel in card.numeric]}
    entities = card.provenance.get("scaling", {}).get("entities", {})
    for name, values in entities.items():
        scaling[name] = list(zip(values["center"], values["scale"], strict=True))
    return scaling
