"""Table ``replay``: how measurements are taken."""

from typing import Annotated, Literal

from pydantic import Field

from sma_pilot.plan.values import Section


class ReplayPlan(Section):
    """How measurements are taken."""

    single_stream_events: Annotated[int, Field(ge=1)] = 2000
    """Judged events sent one at a time, per pass and arm; percentiles need some hundreds."""
    warmup_events: Annotated[int, Field(ge=0)] = 200
    passes: Annotated[int, Field(ge=1, le=100)] = 3
    """How often the single-stream scenario visits each arm, in random order."""
    chunk_rows: Annotated[int, Field(ge=16)] = 2048
    """Rows of one sequence that an offline forward takes at once."""
    threads: Annotated[int, Field(ge=1)] = 1
    device: Literal["cpu", "cuda"] = "cpu"
