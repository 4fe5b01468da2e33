"""The data set's card, ``dataset.json``: what the rows mean, and the hash of every split.

Layout of a data set folder::

    dataset.json            the card, written last
    <split>.safetensors     the rows of one split

Tensors of a split; N rows of all S sequences end to end, in time order within a sequence:

=================  ==========  ==================================================================
numeric            f32 [N, C]  scaled: (raw - center) / scale; NaN = missing. Absent when C = 0
categorical        i32 [N, K]  index into the channel's vocabulary. Absent when K = 0
label              i32 [N]     for evaluation: -1 unknown, 0 normal, 1 and above an event's kind
                               (or the class, from 0 on, where classes are told)
target             i32 [N]     training target of each step, -1 = ignore. Absent when there is none
time               i64 [N]     ns since 1970-01-01 UTC; 0, 1, 2, ... where there is no clock
offsets            i64 [S+1]   sequence s is rows offsets[s] to offsets[s+1]
entity             i32 [S]     index into the card's entities
sequence_target    i32 [S]     class of the whole sequence, -1 = ignore. Absent when there is none
=================  ==========  ==================================================================
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sma_core.errors import DatasetError
from sma_core.files import digest_of

FORMAT = "sma.dataset"
VERSION = 1
CARD_FILE = "dataset.json"

# A split's name becomes a file name, so it may hold nothing that walks out of the folder.
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class NumericChannel:
    """A measured quantity. ``raw = stored * scale + center``, so a reader can undo the scaling."""

    name: str
    center: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CategoricalChannel:
    """A channel that takes one of a few values; a row stores the value's index."""

    name: str
    vocabulary: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitCard:
    """What the card knows about one split. The times are None when it holds no row."""

    file: str
    rows: int
    sequences: int
    sha256: str
    first_time_ns: int | None
    last_time_ns: int | None


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """The contents of ``dataset.json``.

    Parameters
    ----------
    name : str
        Shown to people.
    numeric, categorical : tuple
        Channels, in the order of the columns of the tensors of those names.
    classes : tuple of str
        Names of the values of ``target`` or ``sequence_target``; empty when there are none.
    period_ns : int
        Nominal time between two rows of a sequence, in ns; 0 when there is none.
    entities : tuple of str
        Machines, users, services, ...; empty when the data has a single nameless one.
    splits : mapping of str to SplitCard
        Splits by name.
    provenance : mapping
        JSON-ready record of where the rows come from; this package does not interpret it.
    """

    name: str
    numeric: tuple[NumericChannel, ...] = ()
    categorical: tuple[CategoricalChannel, ...] = ()
    classes: tuple[str, ...] = ()
    period_ns: int = 0
    entities: tuple[str, ...] = ()
    splits: Mapping[str, SplitCard] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = (*self.numeric, *self.categorical)
        _require(bool(channels), "numeric", "the data set has neither numeric nor categorical ones")
        _require_names("numeric and categorical", [channel.name for channel in channels])
        _require_names("classes", self.classes)
        _require_names("entities", self.entities)
        for channel in self.numeric:
            usable = math.isfinite(channel.center) and math.isfinite(channel.scale)
            _require(
                usable and channel.scale > 0,
                f"numeric {channel.name!r}",
                "center must be "
                f"finite and scale above 0, got {channel.center} and {channel.scale}",
            )
        for channel in self.categorical:
            where = f"categorical {channel.name!r}"
            _require(bool(channel.vocabulary), where, "the vocabulary is empty")
            _require_names(where, channel.vocabulary)
        _require(self.period_ns >= 0, "period_ns", f"must be 0 or more, got {self.period_ns}")
        for name, split in self.splits.items():
            require_split_name(name)
            _require(
                split.file == f"{name}.safetensors",
                f"splits.{name}.file",
                f"must be '{name}.safetensors', got {split.file!r}",
            )
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"provenance: must hold JSON values only: {error}") from error

    @property
    def digest(self) -> str:
        """Hash of all that training depends on: channels, classes and the bytes of every split."""
        content = self.to_dict()
        for descriptive in ("name", "entities", "provenance"):
            del content[descriptive]
        return digest_of(content)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = asdict(self)
        # Through JSON and back: tuples become lists, so that equal cards have equal dicts.
        return json.loads(json.dumps({"format": FORMAT, "version": VERSION, **fields}))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DatasetCard":
        """Read the JSON form.

        Raises
        ------
        DatasetError
            When a field is missing, of the wrong type, or of another version of the format.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise DatasetError(f"this is no data set card: its format is not {FORMAT!r}")
        if content.get("version") != VERSION:
            raise DatasetError(
                f"the card is version {content.get('version')!r} and this library reads version "
                f"{VERSION}: prepare the data set again with the library that reads it"
            )
        try:
            return cls(
                name=_typed(content, "name", str),
                numeric=tuple(
                    NumericChannel(
                        name=_typed(channel, "name", str),
                        center=float(_typed(channel, "center", (int, float))),
                        scale=float(_typed(channel, "scale", (int, float))),
                    )
                    for channel in _typed(content, "numeric", list)
                ),
                categorical=tuple(
                    CategoricalChannel(
                        name=_typed(channel, "name", str),
                        vocabulary=_strings(channel, "vocabulary"),
                    )
                    for channel in _typed(content, "categorical", list)
                ),
                classes=_strings(content, "classes"),
                period_ns=_typed(content, "period_ns", int),
                entities=_strings(content, "entities"),
                splits={
                    name: SplitCard(
                        file=_typed(split, "file", str),
                        rows=_typed(split, "rows", int),
                        sequences=_typed(split, "sequences", int),
                        sha256=_typed(split, "sha256", str),
                        first_time_ns=_typed(split, "first_time_ns", (int, type(None))),
                        last_time_ns=_typed(split, "last_time_ns", (int, type(None))),
                    )
                    for name, split in _typed(content, "splits", dict).items()
                },
                provenance=_typed(content, "provenance", dict),
            )
        except (KeyError, TypeError) as error:
            raise DatasetError(f"the card is damaged: {error}") from error


def require_split_name(name: str) -> None:
    """Raise DatasetError unless `name` can safely name a file."""
    _require(
        _SPLIT_NAME.fullmatch(name) is not None,
        f"split {name!r}",
        "a name is letters, digits, '_' and '-', and starts with a letter or digit",
    )


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise DatasetError(f"{where}: {what}")


def _require_names(where: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        _require(name not in seen, where, f"{name!r} appears twice")
        seen.add(name)


def _typed(content: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    if key not in content:
        raise KeyError(f"field {key!r} is missing")
    value = content[key]
    # bool is an int to Python, and never what a field of the card holds.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"field {key!r} has the wrong type: {value!r}")
    return value


def _strings(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _typed(content, key, list)
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"field {key!r} must be a list of strings")
    return tuple(values)
