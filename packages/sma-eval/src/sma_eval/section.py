"""What every table of a study file has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel, frozen=True):
    """A table of the study: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# Random generators take their seeds in 64 bits, and training spreads one over many steps.
Seed = Annotated[int, Field(ge=0, lt=2**31)]
