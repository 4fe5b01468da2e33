"""The rows of a window, read piece by piece: what they are, and the hashes that tell them again."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from sma_core.dataset import Rows
from sma_core.model import Inputs
from sma_pilot.replay.timeline import Stretch, Timeline, stack

_READ_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the rows of a window are.

    Attributes
    ----------
    rows, entities, labelled_rows : int
    keys_sha256, labels_sha256, inputs_sha256 : str
        Of entities and times, of labels, and of what models see.
    """

    rows: int
    entities: int
    labelled_rows: int
    keys_sha256: str
    labels_sha256: str
    inputs_sha256: str


def rows_of(timeline: Timeline) -> Iterator[tuple[Stretch, Rows]]:
    """Read the rows to judge, without those that only lead to them."""
    for stretch in timeline.stretches:
        for begin in range(stretch.first_judged, stretch.rows, _READ_ROWS):
            yield stretch, timeline.read(stretch, begin, min(begin + _READ_ROWS, stretch.rows))


def inputs_of(timeline: Timeline) -> Iterator[Inputs]:
    """Read the same as models see them, [1, T, channels]."""
    return (stack([rows]) for _, rows in rows_of(timeline))


def content_of(timeline: Timeline) -> Content:
    """Read the rows to judge and tell what they are."""
    keys, labels, inputs = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    count = labelled = 0
    entities: set[int] = set()
    for stretch, rows in rows_of(timeline):
        # A name ends where its length says, so no two of them can be read as another two.
        name = timeline.entities[stretch.entity].encode()
        for digest in (keys, labels, inputs):
            digest.update(f"{len(name)}:{len(rows.time)}:".encode() + name)
        keys.update(rows.time.numpy().tobytes())
        labels.update(rows.label.numpy().tobytes())
        for column in (rows.numeric, rows.categorical):
            if column is not None:
                inputs.update(column.numpy().tobytes())
        count += len(rows.time)
        labelled += int((rows.label >= 0).sum())
        entities.add(stretch.entity)
    return Content(
        rows=count,
        entities=len(entities),
        labelled_rows=labelled,
        keys_sha256=keys.hexdigest(),
        labels_sha256=labels.hexdigest(),
        inputs_sha256=inputs.hexdigest(),
    )
