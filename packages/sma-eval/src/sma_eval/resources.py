"""The table ``[resources]``: what a trial takes from the machine or cluster."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sma_eval.section import Section


class Resources(Section, frozen=True):
    """What one trial takes, and how trials share what there is.

    A trial is trained by one process, or by several together (`sma_core.parallel`). They are placed
    all at once or not at all, on one machine or on several.
    """

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    """Of each process."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """Of each process: 1, or a share of one GPU on which several trials are packed."""
    processes: Annotated[int, Field(ge=1)] = 1
    """That train one trial together, each with a part of every batch."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Whether each of several processes holds the whole model, or a share of it."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at once; None: as many as fit."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a trial whose machine or process died starts again from its checkpoint. A trial
    that throws fails at once: it would throw again."""

    @model_validator(mode="after")
    def _a_gpu_for_each_process(self) -> Self:
        if self.gpus > 1.0:
            raise ValueError(
                f"gpus: a process computes on one GPU or on a share of one, not on {self.gpus:g}; "
                f"write processes = {self.gpus:.0f} and gpus = 1"
            )
        if self.processes > 1 and 0.0 < self.gpus < 1.0:
            raise ValueError(
                f"gpus: {self.processes} processes of one trial cannot share a GPU; write gpus = 1"
            )
        return self

    @property
    def device(self) -> str:
        """Where a process computes."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """How many a process computes with."""
        return max(1, int(self.cpus))

    @property
    def total_cpus(self) -> float:
        """Of all processes of a trial."""
        return self.cpus * self.processes

    @property
    def total_gpus(self) -> float:
        """Of all processes of a trial."""
        return self.gpus * self.processes
