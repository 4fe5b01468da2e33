"""Table ``arms``: who competes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section

SIMPLE_ARMS = {
    "pca": "PCA reconstruction error",
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "count_pca": "PCA of event counts",
    "count_logistic": "logistic regression on event counts",
}
"""Kinds without a neural network, which have no settings of a model, in words."""
TASKS_OF_ARM: dict[str, tuple[str, ...]] = {
    "pca": ("forecast_anomaly",),
    "logistic": ("alarm", "classification"),
    "ridge": ("remaining_life",),
    "count_pca": ("session_anomaly",),
    "count_logistic": ("classification",),
}
"""Tasks of each kind of arm that cannot do every task."""


class ArmPlan(Section):
    """One arm: a model to fit, or a checkpoint that is already there."""

    kind: Literal[
        "sma",
        "dense_twin",
        "transformer",
        "checkpoint",
        "pca",
        "logistic",
        "ridge",
        "count_pca",
        "count_logistic",
    ]
    checkpoint: str | None = None
    """kind checkpoint: its folder, relative to the data folder."""
    model: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of the architecture's configuration (inputs and head come from the data set)."""
    training: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of `sma_core.TrainingConfig`."""
    components: Annotated[int, Field(ge=1)] = 8
    """Kinds pca, count_pca: most components kept."""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if (self.kind == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("`checkpoint` names a folder for kind 'checkpoint' and for no other")
        if self.model and self.kind in ("checkpoint", "dense_twin", *SIMPLE_ARMS):
            raise ValueError(f"kind {self.kind!r} takes no `model` table")
        if self.training and self.kind in ("checkpoint", *SIMPLE_ARMS):
            raise ValueError(f"kind {self.kind!r} takes no `training` table")
        return self

    @property
    def words(self) -> str:
        """The kind, as it stands in a sentence."""
        return SIMPLE_ARMS.get(self.kind, self.kind.replace("_", " "))


class Arms(Section):
    """Who competes: what runs today, what may replace it, and the simplest thing that could."""

    incumbent: ArmPlan
    candidate: ArmPlan
    baseline: ArmPlan | None = None

    @model_validator(mode="after")
    def _twin_needs_sma(self) -> Self:
        if self.incumbent.kind == "dense_twin" and self.candidate.kind != "sma":
            raise ValueError("incumbent kind 'dense_twin' is the twin of a candidate of kind 'sma'")
        return self
