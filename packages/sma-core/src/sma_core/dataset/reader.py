"""Read a prepared data set through a memory map: nothing is loaded before it is asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from sma_core.errors import DatasetError
from sma_core.files import sha256_of

from .card import CARD_FILE, DatasetCard, SplitCard
from .tensor_file import TensorFile


class SequenceRef(NamedTuple):
    """Rows `start` to `stop` of a split are one sequence of `entity`."""

    entity: int
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a split, copied to memory. A column the split lacks is None."""

    numeric: Float32[Tensor, "T C"] | None
    categorical: Int32[Tensor, "T K"] | None
    label: Int32[Tensor, " T"]
    target: Int32[Tensor, " T"] | None
    time: Int64[Tensor, " T"]


class PreparedDataset:
    """A data set folder.

    Parameters
    ----------
    folder : Path
        Where it is.
    card : DatasetCard
        Its card.
    """

    def __init__(self, folder: Path, card: DatasetCard) -> None:
        self.folder = folder
        self.card = card
        self._splits = {
            name: Split(folder / split.file, card, split) for name, split in card.splits.items()
        }

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "PreparedDataset":
        """Open a data set folder; reads the card and the header of each split.

        Parameters
        ----------
        folder : Path
            A folder written by `DatasetWriter`.
        verify : bool
            Also read every byte and compare the hashes with the card's.

        Raises
        ------
        DatasetError
            When a file is missing, damaged, of another version, or does not match the card.
        """
        folder = Path(folder)
        path = folder / CARD_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{folder} is no prepared data set: it has no {CARD_FILE}; "
                "name another folder, or prepare the data set"
            ) from error
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f"{path} is no JSON ({error}): copy the data set again, or prepare it again"
            ) from error
        try:
            card = DatasetCard.from_dict(content)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error
        dataset = cls(folder, card)
        if verify:
            for name, split in card.splits.items():
                if sha256_of(folder / split.file) != split.sha256:
                    raise DatasetError(
                        f"{folder / split.file} is not what split {name!r}'s hash in {CARD_FILE} "
                        "says: copy the data set again, or prepare it again"
                    )
        return dataset

    def split(self, name: str) -> "Split":
        """Return a split by name.

        Raises
        ------
        DatasetError
            When there is no such split; the message lists those there are.
        """
        try:
            return self._splits[name]
        except KeyError:
            known = ", ".join(self._splits)
            raise DatasetError(f"{self.folder} has no split {name!r}; it has {known}") from None


class Split:
    """The rows of one split, on disk until `read` copies some.

    Parameters
    ----------
    path : Path
        The split's safetensors file.
    card : DatasetCard
        The data set's card.
    split_card : SplitCard
        This split's part of it.
    """

    def __init__(self, path: Path, card: DatasetCard, split_card: SplitCard) -> None:
        self.card = card
        self.rows = split_card.rows
        self.path = path
        self._file = TensorFile(path)
        layout = self._file.layout()
        expected = _expected_layout(card, split_card)
        optional = {"target", "sequence_target"}
        for name, entry in expected.items():
            if layout.get(name, entry if name in optional else None) != entry:
                raise DatasetError(
                    f"{path}: tensor {name!r} is not what the card says (it is "
                    f"{layout.get(name, 'absent')}): prepare the data set again"
                )
        if unknown := sorted(layout.keys() - expected.keys()):
            raise DatasetError(f"{path}: unknown tensor {unknown[0]!r}: prepare the data set again")
        self.has_target = "target" in layout
        self.has_sequence_target = "sequence_target" in layout
        self.offsets: Int64[Tensor, " S+1"] = self._file.read(
            "offsets", 0, split_card.sequences + 1
        )
        lengths = self.offsets.diff()
        if self.offsets[0] != 0 or self.offsets[-1] != self.rows or (lengths <= 0).any():
            raise DatasetError(
                f"{path}: tensor 'offsets' does not cut the rows into sequences: "
                "prepare the data set again"
            )

    @cached_property
    def entity(self) -> Int32[Tensor, " S"]:
        """Entity of each sequence."""
        return self._file.read("entity", 0, len(self.offsets) - 1)

    @cached_property
    def sequence_target(self) -> Int32[Tensor, " S"] | None:
        """Class of each sequence, -1 = ignore; None when the data set has no such target."""
        if not self.has_sequence_target:
            return None
        return self._file.read("sequence_target", 0, len(self.offsets) - 1)

    @cached_property
    def sequences(self) -> list[SequenceRef]:
        """Where each sequence lies."""
        bounds = self.offsets.tolist()
        entities = self.entity.tolist()
        return [SequenceRef(*ref) for ref in zip(entities, bounds[:-1], bounds[1:], strict=True)]

    def read(self, start: int, stop: int) -> Rows:
        """Copy rows `start` to `stop` (exclusive) to memory.

        Raises
        ------
        IndexError
            When the split has no such rows.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of a split of {self.rows}")
        file = self._file
        return Rows(
            numeric=file.read("numeric", start, stop) if self.card.numeric else None,
            categorical=file.read("categorical", start, stop) if self.card.categorical else None,
            label=file.read("label", start, stop),
            target=file.read("target", start, stop) if self.has_target else None,
            time=file.read("time", start, stop),
        )


def _expected_layout(
    card: DatasetCard, split: SplitCard
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    rows, sequences = split.rows, split.sequences
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "time": (torch.int64, (rows,)),
        "label": (torch.int32, (rows,)),
        "target": (torch.int32, (rows,)),
        "offsets": (torch.int64, (sequences + 1,)),
        "entity": (torch.int32, (sequences,)),
        "sequence_target": (torch.int32, (sequences,)),
    }
    if card.numeric:
        layout["numeric"] = (torch.float32, (rows, len(card.numeric)))
    if card.categorical:
        layout["categorical"] = (torch.int32, (rows, len(card.categorical)))
    return layout
