"""Kinds of arm that were made elsewhere: a checkpoint, an MLflow model, what a log has recorded."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from sma_pilot.plan.values import ArmSection

_IN_STORE = re.compile(r"models:/[^/@]+(@[^/@]+|/\d+)?|runs:/[^/@]+/.+")
Bytes = Annotated[int, Field(ge=0)]


class CheckpointPlan(ArmSection):
    """A sequence model of sma-core that is fitted already."""

    words: ClassVar[str] = "checkpoint"
    kind: Literal["checkpoint"]
    checkpoint: str
    """Its folder, relative to the data folder."""


class PyfuncPlan(ArmSection):
    """A model in MLflow's pyfunc format, whatever made it."""

    tasks: ClassVar[tuple[str, ...]] = ("forecast_anomaly", "alarm", "remaining_life")
    kind: Literal["pyfunc"]
    uri: Annotated[str, Field(min_length=1)]
    """``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/ID``, ``runs:/RUN/PATH``, or a
    folder, relative to the data folder."""
    store: str | None = None
    """Address of the tracking store that knows a ``models:`` or ``runs:`` URI."""
    trust: Annotated[bool, Field(validate_default=True)] = False
    """Running such a model runs its maker's code. Nothing is loaded unless this says so."""
    values: Literal["scaled", "log"]
    """Channels as the prepared data set scales them, or in the log's own units."""
    window: Annotated[int, Field(ge=1, le=4096)] = 1
    """1: a table of rows. More: an array of so many rows each, the present one last."""
    output: str | None = None
    """Column of the answer that holds the score, where it has several."""
    negate: bool = False
    """Whether a larger answer is more usual: the score is then minus the answer, or one minus the
    answer where scores lie in 0 to 1."""
    weight_bytes: Bytes | None = None
    """What its weights take in memory, where you know it; nothing here can count them."""

    @field_validator("trust")
    @classmethod
    def _asked_for(cls, trust: bool) -> bool:
        if not trust:
            raise ValueError(
                "running an MLflow model runs the code of whoever made it, with your rights; if "
                "you trust the maker of this one, say trust = true"
            )
        return trust

    @model_validator(mode="after")
    def _store_goes_with_uri(self) -> Self:
        if (self.store is not None) != self.in_store:
            raise ValueError(
                "`store` names the MLflow store that a `uri` of the form models:/... or runs:/... "
                "is looked up in, and goes with no other"
            )
        if self.in_store and not _IN_STORE.fullmatch(self.uri):
            raise ValueError(
                "`uri` of a model in a store is models:/NAME@ALIAS, models:/NAME/VERSION, "
                "models:/ID or runs:/RUN/PATH"
            )
        return self

    @property
    def in_store(self) -> bool:
        """Whether a store has to be asked where the model is."""
        return self.uri.startswith(("models:/", "runs:/"))

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return f"MLflow model {self.uri}"


class RecordedPlan(ArmSection):
    """Scores, and service times, that the log has from when they were made."""

    words: ClassVar[str] = "recorded scores"
    tasks: ClassVar[tuple[str, ...]] = (
        "forecast_anomaly",
        "alarm",
        "remaining_life",
        "session_anomaly",
    )
    kind: Literal["recorded"]
    score: str
    """Column of the score: larger is more anomalous, made from rows up to its own."""
    latency: str | None = None
    """Column of the service time."""
    latency_unit: Literal["ns", "us", "ms", "s"] = "ms"
    files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Files that hold these columns beside the log's columns of time and entity, relative to the
    data folder; by default those of the log."""
    weight_bytes: Bytes | None = None
    """What its weights take in memory, where you know it."""
    state_bytes_per_entity: Bytes | None = None
    """What it keeps in memory for an entity, where you know it."""

    @model_validator(mode="after")
    def _unit_needs_a_column(self) -> Self:
        if self.latency is None and self.latency_unit != "ms":
            raise ValueError("`latency_unit` belongs to a column `latency`")
        if self.latency == self.score:
            raise ValueError("`score` and `latency` name the same column")
        return self
