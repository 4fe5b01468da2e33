"""Tables ``task`` and ``quality``: what is predicted, and the accuracy that must not be lost."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Duration, Section


class Task(Section):
    """What the models predict and how a score comes from it."""

    kind: Literal["forecast_anomaly", "alarm"]
    """forecast_anomaly: the next row's forecast error, labels only judge. alarm: P(event < h)."""
    horizon: Duration | None = None
    """alarm: how far ahead an event is to be announced."""
    smoothing: Annotated[int, Field(ge=1, le=10_000)] = 1
    """forecast_anomaly: rows over which the error is averaged, exponentially."""

    @model_validator(mode="after")
    def _horizon_goes_with_alarm(self) -> Self:
        if (self.kind == "alarm") != (self.horizon is not None):
            raise ValueError("`horizon` is needed by kind 'alarm' and unknown to the other kinds")
        return self


class Quality(Section):
    """The accuracy that must not be lost, and how the loss is proven."""

    headline: Literal["event_recall", "average_precision"] = "event_recall"
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
    minimum_events: Annotated[int, Field(ge=1)] = 10
    """Fewer judged events than this are inconclusive whatever the scores."""
