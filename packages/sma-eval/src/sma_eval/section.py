"""What every table of a study file has in common."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TRIALS = 10_000
"""Of one study."""


class Section(BaseModel, frozen=True):
    """A table of the study: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# Random generators take their seeds in 64 bits, and training spreads one over many steps.
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def distinct(values: Sequence[Any]) -> Sequence[Any]:
    """Validate a list of alternatives: at least one, none twice."""
    if not values:
        raise ValueError("at least one entry is needed")
    if len(values) > MAX_TRIALS:
        raise ValueError(f"{len(values)} entries; a study has at most {MAX_TRIALS} trials")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} is listed twice")
    return values
