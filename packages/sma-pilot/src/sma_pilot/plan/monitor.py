"""Table ``monitor``: which changes after a go raise an alarm."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section, Share


class MonitorPlan(Section):
    """Limits on the size of an effect; docs/monitor.md says how each is measured.

    They hold without the table, too, at these defaults. As all of a plan they are declared before
    the first row is replayed.
    """

    minimum_rows: Annotated[int, Field(ge=1)] = 1000
    """Fewer rows than this raise no alarm on drift, routing or rows without a score."""
    quality_drop: Share | None = None
    """How much worse than at the verdict the candidate's headline may be; None: ``loss_limit``."""
    false_alarm_ratio: Annotated[float, Field(ge=1.0)] = 2.0
    """The candidate's false alarms a day over the declared ones."""
    calibration_limit: Share = 0.05
    """task alarm: rise of the expected calibration error over that at the verdict."""
    unscored_limit: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of rows that the incumbent scored and the candidate did not."""
    drift_limit: Annotated[float, Field(gt=0.0)] = 0.25
    """Population stability index of a channel, new rows against judged ones."""
    drift_channels: Annotated[int, Field(ge=1)] = 1
    """How many channels must be over `drift_limit` at once."""
    activation_ratio: Annotated[float, Field(gt=1.0)] = 1.5
    """Activation rate over that of the judged rows, or under it, as a ratio."""
    window_rows: Annotated[int, Field(ge=8, le=65_536)] = 256
    """Latest rows of an entity from which a collapse is told."""
    never_active: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001
    """A share of sub-module runs in the window at or under this is a collapsed router."""
    always_active: Annotated[float, Field(gt=0.0, le=1.0)] = 0.999
    """A share of sub-module runs in the window at or over this is one too."""
    collapse_share: Share = 0.05
    """Share of rows in such a window, beyond that of the judged rows."""
    latency_events: Annotated[int, Field(ge=0)] = 0
    """Events sent one at a time to each arm; 0: latency is not measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.never_active >= self.always_active:
            raise ValueError("need never_active < always_active")
        return self
