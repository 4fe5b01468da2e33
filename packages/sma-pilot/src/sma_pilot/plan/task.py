"""Tables ``task`` and ``quality``: what is predicted, and the accuracy that must not be lost."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Duration, Section

USUAL_VUS_PERIODS = 100
"""What the authors' own benchmark takes unless it is told otherwise."""

_TIMED = ("forecast_anomaly", "alarm", "remaining_life")
TASKS_OF_METRIC: dict[str, tuple[str, ...]] = {
    "vus_pr": _TIMED,
    "affiliation_f1": _TIMED,
    "brier": ("alarm",),
    "mae": ("remaining_life",),
    "rmse": ("remaining_life",),
}
"""Tasks of each metric that not every task has."""


class Task(Section):
    """What the models predict and how a score comes from it."""

    kind: Literal["forecast_anomaly", "alarm", "remaining_life", "session_anomaly"]
    """forecast_anomaly: the next row's forecast error, labels only judge. alarm: P(event < h).
    remaining_life: the time to the next event, at most h. session_anomaly: how surprising an
    entity's sequence of event ids is, judged once a session."""
    horizon: Duration | None = None
    """alarm, remaining_life: how far ahead an event is to be announced; lives are capped at it."""
    smoothing: Annotated[int, Field(ge=1, le=10_000)] = 1
    """forecast_anomaly: rows over which the error is averaged, exponentially."""

    @model_validator(mode="after")
    def _horizon_goes_with_events_to_come(self) -> Self:
        if (self.kind in ("alarm", "remaining_life")) != (self.horizon is not None):
            raise ValueError(
                "`horizon` is needed by the kinds 'alarm' and 'remaining_life' and unknown to the "
                "other kinds"
            )
        return self

    @property
    def by_session(self) -> bool:
        """Whether a whole session, and not a row, is right or wrong."""
        return self.kind == "session_anomaly"


class Quality(Section):
    """The accuracy that must not be lost, and how the loss is proven."""

    headline: Literal[
        "event_recall", "average_precision", "vus_pr", "affiliation_f1", "brier", "mae", "rmse"
    ] = "event_recall"
    loss_limit: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Largest loss that is accepted: incumbent minus candidate, in the headline's own unit."""
    false_alarms_per_day: Annotated[float, Field(gt=0.0)]
    """Alarms a day and entity outside events, allowed on validation rows: it sets thresholds."""
    alarm_merge: Duration
    """Rows over the threshold that are closer than this count as one alarm."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """One-sided error rate of every bound."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    block: Duration | None = None
    """Length of a bootstrap block; None: chosen from the autocorrelation of the loss."""
    vus_window: Duration | None = None
    """Widest buffer of VUS-PR, both sides together; None: 100 periods."""
    minimum_events: Annotated[int, Field(ge=1)] = 10
    """Fewer judged events than this are inconclusive whatever the scores."""

    def vus_width(self, period: timedelta) -> int:
        """Return the widest buffer of VUS-PR in whole periods."""
        return USUAL_VUS_PERIODS if self.vus_window is None else self.vus_window // period
