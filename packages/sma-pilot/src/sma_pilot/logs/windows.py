"""Prepare a log: from raw files to the prepared data set, with nothing flowing back in time.

Two passes over the log in order (`staging`). The first counts, and fits scales and vocabularies on
training rows. The second cuts sequences, scales, codes and writes. A sequence ends at a silence
longer than ``max_gap`` and at every border between slices, so no slice sees another.
"""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sma_core import CategoricalChannel, DatasetWriter, NumericChannel, PreparedDataset
from sma_pilot.errors import LogError, RunError
from sma_pilot.logs.blocks import Block, blocks
from sma_pilot.logs.files import fingerprint
from sma_pilot.logs.known_classes import KnownClasses
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.scaling import Scaler
from sma_pilot.logs.slices import OUTSIDE, SLICES, Borders, nanoseconds
from sma_pilot.logs.staging import PARTITION_BYTES, StagedLog, stage
from sma_pilot.logs.tally import Tally
from sma_pilot.logs.vocabulary import Templates, Vocabulary
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.targets import class_names, classes_of, next_event


def prepare(
    plan: Plan,
    data_dir: Path,
    folder: Path,
    on_progress: OnProgress | None = None,
    *,
    partition_bytes: int = PARTITION_BYTES,
) -> PreparedDataset:
    """Turn the plan's log into a prepared data set with the splits train, validation and judged.

    Parameters
    ----------
    plan : Plan
        The pilot's plan.
    data_dir : Path
        Where the plan's relative paths start.
    folder : Path
        Where the data set goes. If one of the same plan and the same log is there, it is returned
        as it is.
    on_progress : OnProgress, optional
        Told the rows done by stage.
    partition_bytes : int
        Memory aimed at for one partition of the external sort.

    Returns
    -------
    PreparedDataset
        ``card.provenance`` holds the plan's digest, each file's SHA-256, every count of rows read,
        dropped and cut, and the scales applied to each entity.

    Raises
    ------
    LogError
        When the log does not fit the plan, or a slice has no rows.
    RunError
        When `folder` holds a data set of another plan or log.
    """
    reader = LogReader(plan.log, data_dir)
    files = [fingerprint(file) for file in reader.files]
    digest = _preparation_digest(plan, files)
    if folder.exists() and any(folder.iterdir()):
        return _reuse(folder, digest)
    survey = reader.take_survey(on_progress)
    borders = Borders.of(plan.slices, survey.first, survey.last)
    max_gap = nanoseconds(plan.log.max_gap)
    with stage(plan.log, reader, folder, on_progress, partition_bytes) as staged:
        tally = _take_tally(staged, plan, borders, on_progress)
        for name, counts in zip(SLICES, tally.slices, strict=True):
            if counts.rows == 0:
                raise LogError(f"slices: no row of the log falls into {name}; move the borders")
        scaler = Scaler.fit(tally.train_moments, per_entity=plan.log.scaling == "per_entity")
        vocabularies = tally.vocabularies()
        columns = reader.columns
        classes = KnownClasses.of(tally.units, survey.coding, columns.label)
        if plan.task.by_session and len(columns.categorical) != 1:
            raise LogError(
                f"log.categorical: {len(columns.categorical)} columns match; task "
                "session_anomaly needs one, that of the event ids"
            )
        provenance = {
            "preparation_digest": digest,
            "plan_digest": plan.digest,
            "files": files,
            "rows_read": survey.rows,
            "lines_unparsed": {
                "lines": survey.lines_unparsed,
                "examples": survey.unparsed_examples,
            },
            "rows_without_time": survey.without_time,
            "rows_without_entity": survey.without_entity,
            "rows_out_of_order": survey.out_of_order,
            "duplicates_dropped": staged.duplicates,
            **tally.to_dict(),
            "borders_ns": list(borders.edges),
            "labels": survey.coding.to_dict() if survey.coding is not None else None,
            "templates": next(
                (own.to_dict() for own in vocabularies if isinstance(own, Templates)), None
            ),
            "classes": None if classes is None else classes.to_dict(),
            "scaling": scaler.to_dict(staged.entities, columns.numeric),
        }
        # Within the staging folder, so that a killed run leaves one thing that the next removes.
        made = staged.folder / "dataset"
        with DatasetWriter(
            made,
            name=plan.name,
            numeric=[
                NumericChannel(name=name, center=float(center), scale=float(scale))
                for name, center, scale in zip(
                    columns.numeric, scaler.fleet_center, scaler.fleet_scale, strict=True
                )
            ],
            categorical=[
                CategoricalChannel(name=name, vocabulary=vocabulary.values)
                for name, vocabulary in zip(columns.categorical, vocabularies, strict=True)
            ],
            classes=vocabularies[0].values
            if plan.task.by_session
            else (class_names(plan.task) if classes is None else classes.names),
            period_ns=nanoseconds(plan.log.period),
            entities=staged.entities,
            splits=SLICES,
            provenance=provenance,
        ) as writer:
            rows = _RowWriter(plan, writer, tally, scaler, vocabularies, borders, classes)
            done = 0
            for block in blocks(staged, borders, max_gap):
                rows.write(block)
                done += len(block.time)
                if on_progress is not None:
                    on_progress("write data set", done, staged.rows)
            if plan.task.horizon is not None and not rows.announced:
                raise LogError(
                    f"task {plan.task.kind}: no training row lies within the horizon before an "
                    "event, so there is nothing to learn; move slices.validation_from, or check "
                    "log.label"
                )
        try:
            made.rename(folder)
        except OSError:  # another run of the same plan was faster
            return _reuse(folder, digest)
    return PreparedDataset.open(folder)


class _RowWriter:
    """Scales, codes and appends the rows of each block."""

    def __init__(
        self,
        plan: Plan,
        writer: DatasetWriter,
        tally: Tally,
        scaler: Scaler,
        vocabularies: list[Vocabulary],
        borders: Borders,
        classes: KnownClasses | None,
    ) -> None:
        self._writer = writer
        self._classes = classes
        self._events = tally.events
        self._scaler = scaler
        self._vocabularies = vocabularies
        self._borders = borders
        self._task = plan.task
        self._horizon = None if plan.task.horizon is None else nanoseconds(plan.task.horizon)
        self.announced = 0
        """Training rows within the horizon before an event."""

    def write(self, block: Block) -> None:
        """Append a block, cut at its sequence starts."""
        target, label = None, block.label
        if self._horizon is not None:
            remaining = self._events.remaining(block, self._borders, self._horizon)
            target = classes_of(self._task, remaining, self._horizon)
            near = (remaining >= 0) & (remaining <= self._horizon) & (block.slices == 0)
            self.announced += int(near.sum())
        if self._classes is not None:
            label = self._classes.label_of(block)
            target = self._classes.target_of(label)
        numeric = self._scaler.apply(block.entity, block.numeric)
        categorical = self._encode(block)
        if self._task.by_session and categorical is not None:
            target = next_event(categorical[:, 0], block.label, block.starts)
        cuts = np.flatnonzero(block.starts)
        edges = np.unique(np.concatenate([[0], cuts, [len(block.time)]]))
        for start, stop in pairwise(edges.tolist()):
            number = block.slices[start]
            if number == OUTSIDE:
                continue
            self._writer.append(
                SLICES[number],
                entity=block.entity,
                time=block.time[start:stop],
                numeric=numeric[start:stop] if numeric.shape[1] else None,
                categorical=None if categorical is None else categorical[start:stop],
                label=label[start:stop],
                target=None if target is None else target[start:stop],
                continued=not block.starts[start],
            )

    def _encode(self, block: Block) -> NDArray[np.int32] | None:
        if not self._vocabularies:
            return None
        coded = [
            vocabulary.encode(words)
            for words, vocabulary in zip(block.categorical, self._vocabularies, strict=True)
        ]
        return np.stack(coded, axis=1)


def _take_tally(
    staged: StagedLog, plan: Plan, borders: Borders, on_progress: OnProgress | None
) -> Tally:
    columns = staged.reader.columns
    tally = Tally(len(staged.entities), columns, plan.task.window, plan.log.text)
    done = 0
    for block in blocks(staged, borders, nanoseconds(plan.log.max_gap)):
        tally.add(block)
        done += len(block.time)
        if on_progress is not None:
            on_progress("count rows", done, staged.rows)
    tally.finish()
    return tally


def _preparation_digest(plan: Plan, files: list[dict[str, Any]]) -> str:
    content = [(file["file"], file["sha256"]) for file in files]
    return hashlib.sha256(json.dumps([plan.digest, content]).encode()).hexdigest()


def _reuse(folder: Path, digest: str) -> PreparedDataset:
    dataset = PreparedDataset.open(folder)
    if dataset.card.provenance.get("preparation_digest") != digest:
        raise RunError(
            f"{folder}: holds a data set of another plan or of a log that has changed since; "
            "name another folder, or remove this one"
        )
    return dataset
