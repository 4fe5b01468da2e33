"""Tables ``task`` and ``quality``: what is predicted, and the accuracy that must not be lost."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Duration, Section

USUAL_VUS_PERIODS = 100
"""What the authors' own benchmark takes unless it is told otherwise."""

_TIMED = ("forecast_anomaly", "alarm", "remaining_life")
_ALARMING = (*_TIMED, "session_anomaly")
TASKS_OF_METRIC: dict[str, tuple[str, ...]] = {
    "event_recall": _ALARMING,
    "average_precision": _ALARMING,
    "vus_pr": _TIMED,
    "affiliation_f1": _TIMED,
    "accuracy": ("classification",),
    "balanced_accuracy": ("classification",),
    "macro_f1": ("classification",),
    "brier": ("alarm", "classification"),
    "mae": ("remaining_life",),
    "rmse": ("remaining_life",),
}
"""Tasks of each metric that not every task has."""


class Task(Section):
    """What the models predict and how a score comes from it."""

    kind: Literal[
        "forecast_anomaly", "alarm", "remaining_life", "session_anomaly", "classification"
    ]
    """forecast_anomaly: the next row's forecast error, labels only judge. alarm: P(event < h).
    remaining_life: the time to the next event, at most h. session_anomaly: how surprising an
    entity's sequence of event ids is, judged once a session. classification: which class a session,
    or a window of an entity's time, belongs to."""
    horizon: Duration | None = None
    """alarm, remaining_life: how far ahead an event is to be announced; lives are capped at it."""
    window: Duration | None = None
    """classification: an entity's time is cut into windows of this length, by the clock, and each
    is told once, by its last row; None: the entity is a session, told once as a whole."""
    smoothing: Annotated[int, Field(ge=1, le=10_000)] = 1
    """forecast_anomaly: rows over which the error is averaged, exponentially."""

    @model_validator(mode="after")
    def _horizon_goes_with_events_to_come(self) -> Self:
        if (self.kind in ("alarm", "remaining_life")) != (self.horizon is not None):
            raise ValueError(
                "`horizon` is needed by the kinds 'alarm' and 'remaining_life' and unknown to the "
                "other kinds"
            )
        if self.window is not None and not self.by_class:
            raise ValueError("`window` is known to the kind 'classification' alone")
        return self

    @property
    def by_class(self) -> bool:
        """Whether classes are told, and nothing is an event or an alarm."""
        return self.kind == "classification"

    @property
    def units(self) -> str:
        """What is right or wrong one by one, in words."""
        if not self.by_class:
            return "events"
        return "sessions" if self.window is None else "windows"

    @property
    def by_session(self) -> bool:
        """Whether a whole session, and not a row, is right or wrong."""
        return self.kind == "session_anomaly"


class Quality(Section):
    """The accuracy that must not be lost, and how the loss is proven."""

    headline: Literal[
        "event_recall",
        "average_precision",
        "vus_pr",
        "affiliation_f1",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "brier",
        "mae",
        "rmse",
    ] = "event_recall"
    loss_limit: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Largest loss that is accepted: incumbent minus candidate, in the headline's own unit."""
    false_alarms_per_day: Annotated[float, Field(gt=0.0)] | None = None
    """Alarms a day and entity outside events, allowed on validation rows: it sets thresholds.
    None for `classification` alone, which raises no alarms."""
    alarm_merge: Duration | None = None
    """Rows over the threshold that are closer than this count as one alarm; None as above."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """One-sided error rate of every bound."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    block: Duration | None = None
    """Length of a bootstrap block; None: chosen from the autocorrelation of the loss."""
    vus_window: Duration | None = None
    """Widest buffer of VUS-PR, both sides together; None: 100 periods."""
    minimum_events: Annotated[int, Field(ge=1)] = 10
    """Fewer judged events, or units of a classification, are inconclusive whatever the scores."""

    def vus_width(self, period: timedelta) -> int:
        """Return the widest buffer of VUS-PR in whole periods."""
        return USUAL_VUS_PERIODS if self.vus_window is None else self.vus_window // period
