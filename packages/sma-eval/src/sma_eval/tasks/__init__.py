"""What models learn in a study: prepared data sets, generated here or found in the data folder.

A task is one class: its fields are those of the table ``[task]``, and it says itself what its data
holds and where it lies. A new one is listed in `Task`, and nowhere else.
"""

from typing import Annotated, get_args

from pydantic import Field

from .associative_recall import AssociativeRecall
from .generated import GeneratedTask
from .listops import ListOps
from .prepared import Prepared
from .selective_copying import SelectiveCopying

# The registry: `kind` in the study file chooses among these.
Task = Annotated[
    SelectiveCopying | AssociativeRecall | ListOps | Prepared, Field(discriminator="kind")
]
TASKS: tuple[type[GeneratedTask] | type[Prepared], ...] = get_args(get_args(Task)[0])

__all__ = [
    "TASKS",
    "AssociativeRecall",
    "GeneratedTask",
    "ListOps",
    "Prepared",
    "SelectiveCopying",
    "Task",
]
