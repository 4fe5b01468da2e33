"""Write a prepared data set, one sequence or piece of a sequence at a time."""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sma_core.errors import DatasetError

from .card import (
    CARD_FILE,
    CategoricalChannel,
    DatasetCard,
    NumericChannel,
    SplitCard,
    require_split_name,
)
from .checks import checked_column, refuse
from .tensor_file import TensorSpool, join


class DatasetWriter:
    """Stream rows into a new data set folder; a context manager.

    Memory stays bounded: rows go to disk as they are appended. The folder appears when `close` has
    finished, whole, or not at all: until then everything lives in a hidden folder beside it.
    Leaving the ``with`` block by an exception discards what was written.

    Parameters
    ----------
    folder : Path
        Where the data set will be; must not exist, or be empty.
    name : str
        Shown to people.
    numeric : sequence of NumericChannel
        Columns of ``numeric``.
    categorical : sequence of CategoricalChannel
        Columns of ``categorical``.
    classes : sequence of str
        Names of the values of ``target`` or ``sequence_target``.
    period_ns : int
        Nominal time between two rows, in ns; 0 when there is none.
    entities : sequence of str
        Names that ``append(entity=...)`` indexes; empty when there is a single nameless one.
    splits : sequence of str
        Splits that exist even when no row is appended to them.
    provenance : mapping
        JSON-ready record of where the rows come from.

    Raises
    ------
    DatasetError
        When the folder is taken or a channel's description is wrong.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        numeric: Sequence[NumericChannel] = (),
        categorical: Sequence[CategoricalChannel] = (),
        classes: Sequence[str] = (),
        period_ns: int = 0,
        entities: Sequence[str] = (),
        splits: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise DatasetError(f"{self.folder} is not empty: remove it or name another folder")
        self._card = DatasetCard(
            name=name,
            numeric=tuple(numeric),
            categorical=tuple(categorical),
            classes=tuple(classes),
            period_ns=period_ns,
            entities=tuple(entities),
            provenance=dict(provenance or {}),
        )
        for split in splits:
            require_split_name(split)
        self._partial = self.folder.parent / f".{self.folder.name}.{uuid.uuid4().hex[:8]}.partial"
        self._partial.mkdir(parents=True)
        self._splits: dict[str, _SplitWriter] = {}
        self._closed = False
        for split in splits:
            self._split(split)

    def append(
        self,
        split: str,
        *,
        entity: int,
        time: Any,
        numeric: Any = None,
        categorical: Any = None,
        label: Any = None,
        target: Any = None,
        sequence_target: int | None = None,
        continued: bool = False,
    ) -> None:
        """Append one whole sequence, or the next piece of the last one.

        Columns are tensors, or anything `torch.as_tensor` reads without conversion (a numpy array).

        Parameters
        ----------
        split : str
            Name of the split; the first append to it creates it.
        entity : int
            Index into the data set's entities.
        time : int64 [T]
            ns since 1970-01-01 UTC, never decreasing within a sequence.
        numeric : float32 [T, C]
            Scaled values, NaN where missing; infinity is refused.
        categorical : int32 [T, K]
            Indices into the vocabularies.
        label : int32 [T], optional
            -1 unknown (the default), 0 normal, 1 and above an event.
        target : int32 [T], optional
            Class to learn at each step, -1 to ignore. Every append of the data set has it, or none.
        sequence_target : int, optional
            Class to learn for the whole sequence, -1 to ignore. Every sequence has it, or none.
        continued : bool
            Join these rows to the split's last sequence instead of starting another.

        Raises
        ------
        DatasetError
            Naming the tensor and the row that does not fit; nothing of the call is kept.
        """
        where = f"split {split!r}"
        time = checked_column(where, "time", time, torch.int64, ())
        rows = time.shape[0]
        if rows == 0:
            raise DatasetError(f"{where}: time: a sequence has at least one row, got none")
        card = self._card
        columns = {"time": time}
        for key, value, width in (
            ("numeric", numeric, len(card.numeric)),
            ("categorical", categorical, len(card.categorical)),
        ):
            dtype = torch.float32 if key == "numeric" else torch.int32
            if (value is None) != (width == 0):
                raise DatasetError(
                    f"{where}: {key}: the data set has {width} such channels, and "
                    f"the rows {'none' if value is None else 'some'}"
                )
            if value is not None:
                columns[key] = checked_column(where, key, value, dtype, (width,), rows)
        label = torch.full((rows,), -1, dtype=torch.int32) if label is None else label
        columns["label"] = checked_column(where, "label", label, torch.int32, (), rows)
        if target is not None:
            columns["target"] = checked_column(where, "target", target, torch.int32, (), rows)
        self._check_values(where, columns)

        classes = len(card.classes)
        if not 0 <= entity < max(1, len(card.entities)):
            raise DatasetError(
                f"{where}: entity: {entity} is none of the {len(card.entities)} "
                "entities the data set names"
            )
        if sequence_target is not None and not -1 <= sequence_target < (classes or 2**31):
            raise DatasetError(
                f"{where}: sequence_target: {sequence_target} is none of the "
                f"{classes} classes, nor -1"
            )
        known = self._splits.get(split)
        if known is None:
            require_split_name(split)
        if continued:
            if known is None or known.rows == 0:
                raise DatasetError(f"{where}: continued: there is no sequence to continue")
            known.check_continuation(where, entity, time, sequence_target)
        for other in self._splits.values():
            other.check_targets(where, target is not None, sequence_target is not None, continued)
        self._split(split).append(columns, entity, sequence_target, continued)

    def _split(self, name: str) -> "_SplitWriter":
        if name not in self._splits:
            self._splits[name] = _SplitWriter(self._partial, name, self._card)
        return self._splits[name]

    def _check_values(self, where: str, columns: dict[str, Tensor]) -> None:
        time = columns["time"]
        refuse(where, "time", time[1:] < time[:-1], "goes backwards", first_row=1)
        if "numeric" in columns:
            names = [channel.name for channel in self._card.numeric]
            refuse(where, "numeric", columns["numeric"].isinf(), "is infinite", names)
        if "categorical" in columns:
            values, channels = columns["categorical"], self._card.categorical
            sizes = torch.tensor([len(channel.vocabulary) for channel in channels])
            outside = (values < 0) | (values >= sizes)
            refuse(
                where,
                "categorical",
                outside,
                "is outside the vocabulary",
                [channel.name for channel in channels],
            )
        refuse(where, "label", columns["label"] < -1, "is below -1")
        if "target" in columns:
            target, classes = columns["target"], len(self._card.classes)
            outside = (target < -1) | (target >= (classes or 2**31 - 1))
            refuse(where, "target", outside, f"is none of the {classes} classes, nor -1")

    def close(self) -> DatasetCard:
        """Write the splits and the card, then move the folder to its place.

        Returns
        -------
        DatasetCard
            The card as written.
        """
        if self._closed:
            return self._card
        if not self._splits:
            self.discard()
            raise DatasetError(f"{self.folder}: nothing was appended, so there is no data set")
        has_target = any(split.has_target for split in self._splits.values())
        has_sequence_target = any(split.has_sequence_target for split in self._splits.values())
        try:
            cards = {
                name: split.close(has_target, has_sequence_target)
                for name, split in self._splits.items()
            }
            self._card = replace(self._card, splits=cards)
            text = json.dumps(self._card.to_dict(), indent=2, allow_nan=False)
            (self._partial / CARD_FILE).write_text(text + "\n", encoding="utf-8")
            if self.folder.is_dir():
                self.folder.rmdir()
            self._partial.rename(self.folder)
        except BaseException:
            self.discard()
            raise
        self._closed = True
        return self._card

    def discard(self) -> None:
        """Forget everything appended."""
        for split in self._splits.values():
            split.discard()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class _SplitWriter:
    """The spools of one split, and what its next rows must agree with."""

    def __init__(self, folder: Path, name: str, card: DatasetCard) -> None:
        self.rows = 0
        self.sequences = 0
        self.has_target = False
        self.has_sequence_target = False
        self._path = folder / f"{name}.safetensors"
        self._first_time: int | None = None
        self._last_time: int | None = None
        self._sequence_time = 0
        self._last_entity = -1
        self._last_sequence_target: int | None = None
        columns: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "time": (torch.int64, ()),
            "label": (torch.int32, ()),
            "target": (torch.int32, ()),
            "offsets": (torch.int64, ()),
            "entity": (torch.int32, ()),
            "sequence_target": (torch.int32, ()),
        }
        if card.numeric:
            columns["numeric"] = (torch.float32, (len(card.numeric),))
        if card.categorical:
            columns["categorical"] = (torch.int32, (len(card.categorical),))
        self._spools = {
            key: TensorSpool(folder / f"{name}.{key}.spool", dtype, tail)
            for key, (dtype, tail) in columns.items()
        }

    def check_continuation(
        self, where: str, entity: int, time: Tensor, sequence_target: int | None
    ) -> None:
        if entity != self._last_entity:
            raise DatasetError(
                f"{where}: entity: the continued sequence is entity "
                f"{self._last_entity}'s, got {entity}"
            )
        if int(time[0]) < self._sequence_time:
            raise DatasetError(
                f"{where}: time: row {self.rows} goes backwards from the sequence's previous piece"
            )
        if sequence_target not in (None, self._last_sequence_target):
            raise DatasetError(f"{where}: sequence_target: differs from the sequence's first piece")

    def check_targets(
        self, where: str, target: bool, sequence_target: bool, continued: bool
    ) -> None:
        if self.rows == 0:
            return
        if target != self.has_target:
            raise DatasetError(f"{where}: target: every append gives it, or none does")
        if not continued and sequence_target != self.has_sequence_target:
            raise DatasetError(f"{where}: sequence_target: every sequence has it, or none does")

    def append(
        self,
        columns: dict[str, Tensor],
        entity: int,
        sequence_target: int | None,
        continued: bool,
    ) -> None:
        time = columns["time"]
        first, last = int(time[0]), int(time[-1])
        if not continued:
            self._one("offsets", self.rows)
            self._one("entity", entity)
            if sequence_target is not None:
                self._one("sequence_target", sequence_target)
                self.has_sequence_target = True
            self.sequences += 1
            self._last_entity = entity
            self._last_sequence_target = sequence_target
        self.has_target = "target" in columns
        for key, column in columns.items():
            self._spools[key].append(column)
        self.rows += time.shape[0]
        self._first_time = min(first, first if self._first_time is None else self._first_time)
        self._last_time = max(last, last if self._last_time is None else self._last_time)
        self._sequence_time = last

    def _one(self, key: str, value: int) -> None:
        spool = self._spools[key]
        spool.append(torch.tensor([value], dtype=spool.dtype))

    def close(self, target: bool, sequence_target: bool) -> SplitCard:
        self._one("offsets", self.rows)
        for key, wanted in (("target", target), ("sequence_target", sequence_target)):
            if not wanted:
                spool = self._spools.pop(key)
                spool.close()
                spool.path.unlink()
        return SplitCard(
            file=self._path.name,
            rows=self.rows,
            sequences=self.sequences,
            sha256=join(self._spools, self._path),
            first_time_ns=self._first_time,
            last_time_ns=self._last_time,
        )

    def discard(self) -> None:
        for spool in self._spools.values():
            spool.close()
