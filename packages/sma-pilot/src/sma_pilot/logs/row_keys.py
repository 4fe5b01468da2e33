"""Which rows a slice has, without their values: what is known before any arm has scored them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sma_pilot.judge.measurements import JUDGED, AlignedSlice
from sma_pilot.logs.blocks import blocks
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.slices import SLICES, Borders, nanoseconds
from sma_pilot.logs.staging import PARTITION_BYTES, stage
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class JudgedKeys:
    """The judged rows of a log, without a score.

    Attributes
    ----------
    rows : AlignedSlice
        Entity, time and label of each; no arm.
    entities : tuple of str
        Names, in the order of their codes.
    borders : tuple of int
        Edges of the plan's slices, ns.
    """

    rows: AlignedSlice
    entities: tuple[str, ...]
    borders: tuple[int, ...]


def judged_keys(
    plan: Plan,
    data_dir: Path,
    on_progress: OnProgress | None = None,
    *,
    partition_bytes: int = PARTITION_BYTES,
) -> JudgedKeys:
    """Read entity, time and label of the judged rows, of which no arm has a score.

    Parameters
    ----------
    plan : Plan
        The pilot's plan.
    data_dir : Path
        Where the plan's relative paths start.
    on_progress : OnProgress, optional
        Told the rows done by stage.
    partition_bytes : int
        Memory aimed at for one partition of the external sort; the keys take 16 bytes a row.

    Raises
    ------
    LogError
        When the log does not fit the plan.
    """
    reader = LogReader(plan.log, data_dir)
    survey = reader.take_survey(on_progress)
    borders = Borders.of(plan.slices, survey.first, survey.last)
    number = SLICES.index(JUDGED)
    entity, time, label = [], [], []
    with stage(plan.log, reader, None, on_progress, partition_bytes) as staged:
        for block in blocks(staged, borders, nanoseconds(plan.log.max_gap)):
            mine = block.slices == number
            entity.append(np.full(int(mine.sum()), block.entity, np.int32))
            time.append(block.time[mine])
            label.append(block.label[mine])
        entities = tuple(staged.entities)
    rows = AlignedSlice(
        name=JUDGED,
        entity=np.concatenate(entity),
        time=np.concatenate(time),
        label=np.concatenate(label),
        scores={},
    )
    return JudgedKeys(rows=rows, entities=entities, borders=borders.edges)
