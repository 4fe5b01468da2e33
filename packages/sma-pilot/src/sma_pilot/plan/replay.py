"""Table ``replay``: how measurements are taken."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section

Scenario = Literal["multi_stream", "server"]


class ServerPlan(Section):
    """The open loop: events come when they come, whether the arm is free or not."""

    arrivals: Literal["log", "poisson"] = "log"
    """By the log's own timestamps, or at random times of a constant rate."""
    speed: Annotated[float, Field(gt=0.0)] = 1.0
    """arrivals 'log': how many times faster than recorded."""
    rate: Annotated[float, Field(gt=0.0)] | None = None
    """arrivals 'poisson': events a second."""
    events: Annotated[int, Field(ge=1)] = 2000
    bound_ms: Annotated[float, Field(gt=0.0)] | None = None
    """Response time that the percentile of `efficiency` must keep to; given, the highest rate that
    keeps to it is searched for."""
    most_seconds: Annotated[float, Field(gt=0.0)] = 600.0
    """A run that would take longer is refused before it starts."""

    @model_validator(mode="after")
    def _fields_fit_arrivals(self) -> Self:
        if (self.arrivals == "poisson") != (self.rate is not None):
            raise ValueError("`rate` is needed by arrivals 'poisson' and unknown to 'log'")
        # Not whether it was typed: of a frozen plan every field is.
        if self.arrivals == "poisson" and self.speed != 1.0:
            raise ValueError("`speed` belongs to arrivals 'log'; arrivals 'poisson' have a `rate`")
        return self


class ReplayPlan(Section):
    """How measurements are taken."""

    single_stream_events: Annotated[int, Field(ge=1)] = 2000
    """Judged events sent one at a time, per pass and arm; percentiles need some hundreds."""
    warmup_events: Annotated[int, Field(ge=0)] = 200
    passes: Annotated[int, Field(ge=1, le=100)] = 3
    """How often the single-stream scenario visits each arm, in random order."""
    chunk_rows: Annotated[int, Field(ge=16)] = 2048
    """Rows of one sequence that an offline forward takes at once."""
    scenarios: tuple[Scenario, ...] = ()
    """Measured beside offline and single stream."""
    multi_stream_entities: Annotated[int, Field(ge=2, le=65_536)] = 8
    """Entities whose next rows make one batch."""
    multi_stream_batches: Annotated[int, Field(ge=1)] = 500
    server: ServerPlan | None = None
    """Needed by scenario 'server'."""
    threads: Annotated[int, Field(ge=1)] = 1
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _scenarios_are_whole(self) -> Self:
        if len(set(self.scenarios)) < len(self.scenarios):
            raise ValueError("`scenarios` names one twice")
        if ("server" in self.scenarios) != (self.server is not None):
            raise ValueError("scenario 'server' and the table `server` go together")
        return self
