"""Rows that came after the judged ones, as the models know rows: nothing is fitted to them.

Channels, vocabularies, centres and scales are those of the signed data set. A machine that it does
not know is scaled as the fleet, as one unseen in training is within a pilot.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sma_core import DatasetWriter, PreparedDataset
from sma_core.dataset import DatasetCard
from sma_pilot.errors import LogError
from sma_pilot.logs.blocks import blocks
from sma_pilot.logs.files import fingerprint, open_files
from sma_pilot.logs.labels import EVENT, NORMAL, UNKNOWN, LabelCoding
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.scaling import Scaler
from sma_pilot.logs.slices import JUDGED, SLICES, Borders, iso, nanoseconds
from sma_pilot.logs.staging import StagedLog, stage
from sma_pilot.logs.vocabulary import Words
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """A log's rows since a time, prepared.

    Parameters
    ----------
    dataset : PreparedDataset
        Split ``judged`` has the rows, ``validation`` none. Its entities are those of the signed
        data set, in their order, and then those that it does not know.
    folder : Path
        A folder that goes when the rows go, for what is made of them.
    last_ns : int
        Time of the last row.
    unknown : tuple of str
        Entities that the signed data set does not know.
    account : dict
        Files and counts, ready for JSON.
    """

    dataset: PreparedDataset
    folder: Path
    last_ns: int
    unknown: tuple[str, ...]
    account: dict[str, Any]


@contextmanager
def new_rows(
    plan: Plan,
    card: DatasetCard,
    log: Sequence[str],
    data: Path,
    since_ns: int,
    beside: Path,
    on_progress: OnProgress,
) -> Iterator[NewRows]:
    """Prepare the rows of `log` at `since_ns` or later, for the length of a ``with`` block.

    Parameters
    ----------
    plan : Plan
        Says what the columns mean.
    card : DatasetCard
        Of the signed data set.
    log : sequence of str
        Files or patterns.
    data : Path
        Where relative ones start.
    since_ns : int
        Earlier rows are counted and left out.
    beside : Path
        The hidden folder of the rows is made beside this one; that of a killed process is removed.
    on_progress : OnProgress

    Raises
    ------
    LogError
        When the log does not fit the plan, or has no row since then.
    """
    reader = _open(plan, card, log, data)
    files = [fingerprint(file) for file in reader.files]
    survey = reader.take_survey(on_progress)
    if reader.columns.label is not None and survey.coding is not None:
        survey.coding = _as_then(survey.coding, card)
    if survey.last < since_ns:
        raise LogError(
            f"--new: the log ends at {iso(survey.last)}, and rows up to {iso(since_ns - 1)} were "
            "judged before the go; give a log of what came after"
        )
    low = min(survey.first, since_ns)
    borders = Borders((low, low, since_ns, survey.last + 1))
    with stage(plan.log, reader, beside, on_progress) as staged:
        known = card.entities
        unknown = tuple(name for name in staged.entities if name not in set(known))
        folder = staged.folder / "rows"
        counts = _write(plan, card, staged, borders, (*known, *unknown), folder, on_progress)
        yield NewRows(
            dataset=PreparedDataset.open(folder),
            folder=staged.folder,
            last_ns=survey.last,
            unknown=unknown,
            account={
                "files": files,
                "rows_read": survey.rows,
                "rows_without_time": survey.without_time,
                "rows_without_entity": survey.without_entity,
                "duplicates_dropped": staged.duplicates,
                **counts,
                "has_label_column": reader.columns.label is not None,
            },
        )


def _open(plan: Plan, card: DatasetCard, log: Sequence[str], data: Path) -> LogReader:
    """Open the log with the channels of the signed data set, by name and in their order."""
    try:
        files = open_files(log, data)
    except LogError as error:
        raise LogError(str(error).replace("log.files:", "--new:")) from error
    label = plan.log.label
    if label is not None and all(label not in file.dtypes for file in files):
        label = None  # nobody has labelled these rows yet
    numeric = tuple(channel.name for channel in card.numeric)
    categorical = tuple(channel.name for channel in card.categorical)
    source = plan.log.model_copy(
        update={
            "files": tuple(log),
            "label": label,
            "numeric": numeric,
            "categorical": categorical,
        }
    )
    reader = LogReader(source, data)
    reader.columns = replace(reader.columns, numeric=numeric, categorical=categorical)
    return reader


def _as_then(coding: LabelCoding, card: DatasetCard) -> LabelCoding:
    """Read a missing label as the signed data set does, once there is any label at all."""
    if not any(code in (NORMAL, EVENT) or code > EVENT for code in coding.codes.values()):
        return replace(coding, null_code=UNKNOWN)
    then = card.provenance.get("labels") or {"missing": coding.null_code}
    return replace(coding, null_code=then["missing"])


def _scaler(card: DatasetCard, entities: Sequence[str]) -> Scaler:
    """Return the scales of the signed data set for these entities."""
    center = np.array([channel.center for channel in card.numeric])
    scale = np.array([channel.scale for channel in card.numeric])
    fitted = card.provenance["scaling"]["entities"]
    own = [fitted.get(name, {"center": center, "scale": scale}) for name in entities]
    return Scaler(
        fleet_center=center,
        fleet_scale=scale,
        center=np.array([one["center"] for one in own]),
        scale=np.array([one["scale"] for one in own]),
    )


def _write(
    plan: Plan,
    card: DatasetCard,
    staged: StagedLog,
    borders: Borders,
    entities: tuple[str, ...],
    folder: Path,
    on_progress: OnProgress,
) -> dict[str, int]:
    """Write the rows behind the last border as a data set; count them and those before."""
    scaler = _scaler(card, staged.entities)
    place = {name: index for index, name in enumerate(entities)}
    vocabularies = [Words(channel.vocabulary) for channel in card.categorical]
    counts = {"rows_before": 0, "rows": 0, "values_not_finite": 0}
    done = 0
    with DatasetWriter(
        folder,
        name=card.name,
        numeric=card.numeric,
        categorical=card.categorical,
        classes=card.classes,
        period_ns=card.period_ns,
        entities=entities,
        splits=SLICES,
    ) as writer:
        for block in blocks(staged, borders, nanoseconds(plan.log.max_gap)):
            numeric = scaler.apply(block.entity, block.numeric)
            categorical = block.coded(vocabularies)
            edges = np.unique(
                np.concatenate([[0], np.flatnonzero(block.starts), [len(block.time)]])
            )
            for start, stop in pairwise(edges.tolist()):
                if block.slices[start] != JUDGED:
                    counts["rows_before"] += stop - start
                    continue
                counts["rows"] += stop - start
                writer.append(
                    SLICES[JUDGED],
                    entity=place[staged.entities[block.entity]],
                    time=block.time[start:stop],
                    numeric=numeric[start:stop] if numeric.shape[1] else None,
                    categorical=None if categorical is None else categorical[start:stop],
                    label=block.label[start:stop],
                    continued=not block.starts[start],
                )
            counts["values_not_finite"] += int(block.unusable.sum())
            done += len(block.time)
            on_progress("prepare new rows", done, staged.rows)
    return counts
