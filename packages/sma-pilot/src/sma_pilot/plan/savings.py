"""Tables ``efficiency`` and ``money``: what the candidate must save, and what that is worth."""

from typing import Annotated

from pydantic import Field

from sma_pilot.plan.values import Section


class Efficiency(Section):
    """What the candidate must save to be worth a change."""

    latency_percentile: Annotated[float, Field(ge=50.0, lt=100.0)] = 95.0
    latency_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent, single stream."""
    memory_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent: streaming state per entity plus weights."""
    noise_band: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The incumbent against itself must give a ratio within 1 +- this, or timings prove nothing."""


class Money(Section):
    """Prices, each with its source; without this table cost is `not measured`."""

    currency: Annotated[str, Field(min_length=3, max_length=3)]
    price_per_hour: Annotated[float, Field(gt=0.0)]
    """Price of the machine that serves, an hour of its use."""
    price_source: str
    events_per_year: Annotated[float, Field(gt=0.0)]
