"""Table ``arms``: who competes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section


class ArmPlan(Section):
    """One arm: a model to fit, or a checkpoint that is already there."""

    kind: Literal["sma", "dense_twin", "transformer", "checkpoint", "pca", "logistic"]
    checkpoint: str | None = None
    """kind checkpoint: its folder, relative to the data folder."""
    model: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of the architecture's configuration (inputs and head come from the data set)."""
    training: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of `sma_core.TrainingConfig`."""
    components: Annotated[int, Field(ge=1)] = 8
    """kind pca: number of components kept."""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if (self.kind == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("`checkpoint` names a folder for kind 'checkpoint' and for no other")
        if self.model and self.kind in ("checkpoint", "pca", "logistic", "dense_twin"):
            raise ValueError(f"kind {self.kind!r} takes no `model` table")
        if self.training and self.kind in ("checkpoint", "pca", "logistic"):
            raise ValueError(f"kind {self.kind!r} takes no `training` table")
        return self


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
