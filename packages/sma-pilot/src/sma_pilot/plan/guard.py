"""Table ``guard``: when the live system turns from the candidate to what is safe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.values import Section


class GuardPlan(Section):
    """Limits of the fail-safe; docs/guard.md says how each is measured.

    A limit that is not given is not watched. Exceptions and values that are no numbers need no
    limit: they always make the guard fall back.
    """

    fallback: Literal["incumbent", "person"] = "incumbent"
    """Who serves an entity that the candidate does not."""
    hold_rows: Annotated[int, Field(ge=1)] = 60
    """Rows of an entity that the fallback serves before the candidate is tried again."""
    window_rows: Annotated[int, Field(ge=8, le=65_536)] = 256
    """Latest rows of an entity: what drift and collapse are told from, and models primed with."""
    minimum_confidence: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Mean probability of the routing decisions that were taken at a row."""
    never_active: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """A share of sub-module runs in the window at or under this is a collapsed router."""
    always_active: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """A share of sub-module runs in the window at or over this is a collapsed router."""
    drift_limit: Annotated[float, Field(gt=0.0)] | None = None
    """Population stability index of a channel, window against training slice."""
    drift_channels: Annotated[int, Field(ge=1)] = 1
    """How many channels must be over `drift_limit` at once."""
    latency_budget_ms: Annotated[float, Field(gt=0.0)] | None = None
    """Service time of one event."""

    @model_validator(mode="before")
    @classmethod
    def _prices_are_elsewhere(cls, given: Any) -> Any:
        if isinstance(given, dict) and "person_cost" in given:
            raise ValueError(
                "`person_cost` belongs to `money`, with its source: write [money.fallback] with "
                'amount, per = "look" and source'
            )
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (
            self.never_active is not None
            and self.always_active is not None
            and self.never_active >= self.always_active
        ):
            raise ValueError("need never_active < always_active")
        return self
