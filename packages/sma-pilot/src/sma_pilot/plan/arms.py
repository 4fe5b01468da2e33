"""Table ``arms``: who competes. Each kind of arm is one class here, with the fields it has."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.foreign_arms import CheckpointPlan, PyfuncPlan, RecordedPlan
from sma_pilot.plan.values import ArmSection, Section

Window = Annotated[int, Field(ge=1, le=4096)]
FitRows = Annotated[int, Field(ge=100, le=10_000_000)]


class _NetworkPlan(ArmSection):
    """A sequence model to fit."""

    training: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of `sma_core.TrainingConfig`."""


class SMAPlan(_NetworkPlan):
    """A model with Sparse Modular Activation."""

    words: ClassVar[str] = "SMA model"
    kind: Literal["sma"]
    model: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields of the architecture's configuration (inputs and head come from the data set)."""


class DenseTwinPlan(_NetworkPlan):
    """The candidate's model with every sub-module always on."""

    words: ClassVar[str] = "dense twin"
    kind: Literal["dense_twin"]


class TransformerPlan(_NetworkPlan):
    """A causal Transformer with a window."""

    words: ClassVar[str] = "Transformer"
    kind: Literal["transformer"]
    model: Annotated[dict[str, Any], Field(default_factory=dict)]


class GRUPlan(_NetworkPlan):
    """Gated recurrent units."""

    words: ClassVar[str] = "GRU"
    kind: Literal["gru"]
    model: Annotated[dict[str, Any], Field(default_factory=dict)]


class PCAPlan(ArmSection):
    """Distance from the principal components of training rows."""

    words: ClassVar[str] = "PCA reconstruction error"
    tasks: ClassVar[tuple[str, ...]] = ("forecast_anomaly",)
    kind: Literal["pca"]
    simple: bool = True
    components: Annotated[int, Field(ge=1)] = 8
    """Number of components kept."""


class KMeansPlan(ArmSection):
    """Distance from the nearest of some usual rows, or windows of rows."""

    words: ClassVar[str] = "k-means"
    tasks: ClassVar[tuple[str, ...]] = ("forecast_anomaly",)
    kind: Literal["kmeans"]
    simple: bool = True
    clusters: Annotated[int, Field(ge=1, le=10_000)] = 8
    window: Window = 1
    """Rows that are looked at together: the present one and those before it."""
    fit_rows: FitRows = 100_000
    """Training rows to fit on, drawn at random where there are more."""


class LogisticPlan(ArmSection):
    """Logistic regression on a row and the short past behind it."""

    words: ClassVar[str] = "logistic regression"
    tasks: ClassVar[tuple[str, ...]] = ("alarm", "classification")
    kind: Literal["logistic"]
    simple: bool = True


class RidgePlan(ArmSection):
    """Ridge regression of the remaining life on a row and the short past behind it."""

    words: ClassVar[str] = "ridge regression"
    tasks: ClassVar[tuple[str, ...]] = ("remaining_life",)
    kind: Literal["ridge"]
    simple: bool = True


class CountPCAPlan(ArmSection):
    """How often each event of a session occurs, held against the plane of usual sessions."""

    words: ClassVar[str] = "PCA of event counts"
    tasks: ClassVar[tuple[str, ...]] = ("session_anomaly",)
    kind: Literal["count_pca"]
    simple: bool = True
    components: Annotated[int, Field(ge=1)] = 8
    """Most components kept."""


class CountLogisticPlan(ArmSection):
    """Logistic regression on how often each event of a session occurs."""

    words: ClassVar[str] = "logistic regression on event counts"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    kind: Literal["count_logistic"]
    simple: bool = True


class SklearnPlan(ArmSection):
    """An estimator of scikit-learn: declared and fitted here, or fitted elsewhere and saved."""

    tasks: ClassVar[tuple[str, ...]] = ("forecast_anomaly", "alarm", "remaining_life")
    kind: Literal["sklearn"]
    estimator: Annotated[str, Field(pattern=r"^sklearn(\.[A-Za-z_][A-Za-z0-9_]*)+$")] | None = None
    """Its class, such as ``sklearn.ensemble.IsolationForest``: fitted on the training slice."""
    params: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Arguments of the class."""
    file: str | None = None
    """In place of `estimator`: a fitted one in a file of skops, relative to the data folder."""
    trusted: tuple[str, ...] = ()
    """Types in `file` that may be built beside those that skops trusts anyhow."""
    values: Literal["scaled", "log"] | None = None
    """What `file` was fitted on: channels as the prepared data set scales them, or in the log's own
    units."""
    window: Window = 1
    """Rows that are looked at together: the present one and those before it."""
    fit_rows: FitRows = 100_000
    """Training rows to fit on, drawn at random where there are more."""
    simple: bool = True

    @model_validator(mode="after")
    def _declared_or_fitted(self) -> Self:
        if (self.estimator is None) == (self.file is None):
            raise ValueError("name either an `estimator` to fit or the `file` of a fitted one")
        if (self.values is None) != (self.file is None):
            raise ValueError(
                "`values` says what a `file` was fitted on, 'scaled' or 'log'; an `estimator` is "
                "fitted here and has none"
            )
        if self.params and self.file is not None:
            raise ValueError("`params` belong to an `estimator`; a `file` is fitted already")
        if self.trusted and self.file is None:
            raise ValueError("`trusted` belongs to a `file`")
        return self

    @property
    def title(self) -> str:
        """What a reader calls it."""
        name = self.file if self.estimator is None else self.estimator.rsplit(".", 1)[-1]
        return f"scikit-learn: {name}"


ArmPlan = Annotated[
    SMAPlan
    | DenseTwinPlan
    | TransformerPlan
    | GRUPlan
    | CheckpointPlan
    | PCAPlan
    | KMeansPlan
    | LogisticPlan
    | RidgePlan
    | CountPCAPlan
    | CountLogisticPlan
    | SklearnPlan
    | PyfuncPlan
    | RecordedPlan,
    Field(discriminator="kind"),
]


class Arms(Section):
    """Who competes: what runs today, what may replace it, and the simplest thing that could."""

    incumbent: ArmPlan
    candidate: ArmPlan
    baseline: ArmPlan | None = None

    @model_validator(mode="after")
    def _twin_needs_sma(self) -> Self:
        if self.candidate.kind == "sma":
            return self
        for role in ("incumbent", "candidate", "baseline"):
            arm = getattr(self, role)
            if arm is not None and arm.kind == "dense_twin":
                raise ValueError(
                    f"{role} kind 'dense_twin' is the twin of a candidate of kind 'sma'"
                )
        return self
