"""Tables ``efficiency`` and ``money``: what the candidate must save, and what that is worth."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section

Source = Annotated[str, Field(min_length=1)]


class Efficiency(Section):
    """What the candidate must save to be worth a change."""

    latency_percentile: Annotated[float, Field(ge=50.0, lt=100.0)] = 95.0
    latency_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent, single stream."""
    memory_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent: streaming state per entity plus weights."""
    noise_band: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The incumbent against itself must give a ratio within 1 +- this, or timings prove nothing."""


class Price(Section):
    """An amount in the plan's currency, and who says so."""

    amount: Annotated[float, Field(ge=0.0)]
    source: Source


class FallbackPrice(Price):
    """What a fallback of the guard costs beside machine time: the only price of it in a plan."""

    per: Literal["event", "look"] = "event"
    """Of each event that is handed over; or of each time that a person is asked to look."""


class Capacity(Section):
    """Machines that are paid for whether busy or not, and how many of them may really go."""

    machines: Annotated[int, Field(ge=1)]
    """That serve the incumbent today, each at `Money.price_per_hour` all hours of the year."""
    released: Annotated[int, Field(ge=0)] = 0
    """Of these, at most so many are given back once the candidate serves."""
    source: Source

    @model_validator(mode="after")
    def _some_machine_serves(self) -> Self:
        if self.released >= self.machines:
            raise ValueError("`released` must be less than `machines`: one machine has to serve")
        return self


class Appraisal(Section):
    """How the company counts money that comes later."""

    horizon_years: Annotated[int, Field(ge=1, le=50)]
    discount_rate: Annotated[float, Field(ge=0.0, le=1.0)]
    """A year; cash is counted at the end of each."""
    source: Source


class Money(Section):
    """Prices, each with its source; what has no price here is `not measured`, never 0."""

    currency: Annotated[str, Field(min_length=3, max_length=3)]
    price_per_hour: Annotated[float, Field(gt=0.0)]
    """Price of the machine that serves, an hour of its use."""
    price_source: Source
    events_per_year: Annotated[float, Field(gt=0.0)]
    capacity: Capacity | None = None
    """Absent: nothing is given back."""
    setup: Price | None = None
    """Once, to put the candidate in the incumbent's place."""
    running: Price | None = None
    """A year: what the candidate costs more than the incumbent, machine time aside."""
    fallback: FallbackPrice | None = None
    """Of what the guard hands over, beside the machine time for it."""
    appraisal: Appraisal | None = None
