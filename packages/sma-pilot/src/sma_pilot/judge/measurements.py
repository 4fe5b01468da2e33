"""What the judge is given: scores, service times and the figures of each replay leg.

A row of a slice is one (entity, time). Every arm scores the same rows; `AlignedSlice` checks
that, and is the only view of scores that the rest of the judge reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sma_pilot.errors import RunError
from sma_pilot.judge.guard_record import GuardRecord
from sma_pilot.judge.load_sample import LoadSample

INCUMBENT = "incumbent"
INCUMBENT_AGAIN = "incumbent_again"
CANDIDATE = "candidate"
CANDIDATE_AGAIN = "candidate_again"
BASELINE = "baseline"
ARMS = (INCUMBENT, INCUMBENT_AGAIN, CANDIDATE, CANDIDATE_AGAIN, BASELINE)
FIRST_OF = {INCUMBENT_AGAIN: INCUMBENT, CANDIDATE_AGAIN: CANDIDATE}
"""Which arm a second run belongs to: the two tell the noise of the bench. It is the incumbent that
runs twice, or the candidate where the log has but recorded the incumbent."""

VALIDATION = "validation"
JUDGED = "judged"
SLICES = (VALIDATION, JUDGED)
CLASS_COLUMNS = ("predicted", "squared_error")
"""Columns of `ArmScores` that tell of classes."""

OFFLINE = "offline"
SINGLE_STREAM = "single_stream"
PACED = "paced"
MULTI_STREAM = "multi_stream"
SERVER = "server"

_ROW_COLUMNS = ("entity", "time", "label")


def _columns(owner: object, **dtypes: type[np.generic]) -> None:
    """Coerce the named columns of a frozen dataclass in place; all are 1-d and equally long."""
    name = type(owner).__name__
    lengths = {}
    for column, dtype in dtypes.items():
        given = np.asarray(getattr(owner, column))
        same_kind = np.issubdtype(given.dtype, np.floating) == np.issubdtype(dtype, np.floating)
        if given.ndim != 1 or not same_kind:
            raise RunError(
                f"{name}.{column}: need a 1-d {np.dtype(dtype)} column, "
                f"got {given.dtype} of shape {given.shape}"
            )
        object.__setattr__(owner, column, given.astype(dtype, copy=False))
        lengths[column] = given.size
    if len(set(lengths.values())) > 1:
        raise RunError(f"{name}: columns differ in length: {lengths}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """One arm's scores on one slice.

    Attributes
    ----------
    entity : int32 [N]
        Code of the row's entity: its place in `Measurements.entities`.
    time : int64 [N]
        Nanoseconds since the epoch.
    label : int32 [N]
        -1 unknown, 0 normal, 1 and more: inside an event. Where classes are told: the class from
        0 on, and the number of classes for one that training has not.
    score : float32 [N]
        Larger is more anomalous; NaN where the arm gave no score. Where classes are told: the
        probability of the class that was.
    predicted : int32 [N], optional
        The class that was told.
    squared_error : float32 [N], optional
        Sum over classes of (probability - truth)^2; NaN where the truth is not known.
    """

    entity: NDArray[np.int32]
    time: NDArray[np.int64]
    label: NDArray[np.int32]
    score: NDArray[np.float32]
    predicted: NDArray[np.int32] | None = None
    squared_error: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _columns(self, entity=np.int32, time=np.int64, label=np.int32, score=np.float32)
        if self.predicted is not None:
            _columns(self, time=np.int64, predicted=np.int32, squared_error=np.float32)

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return self.score.size


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencySample:
    """Service times of one arm in the single-stream scenario, one query after another.

    Attributes
    ----------
    service_ns : int64 [Q]
        Nanoseconds from handing over the event to having its score.
    pass_index : int32 [Q]
        Which visit of the scenario the query belongs to.
    query : int64 [Q]
        Position of the event within the pass; the same pass and position are the same event in
        each arm.
    active_share : float32 [Q]
        Share of the layers' sub-modules that ran; NaN for an arm that does not route.
    """

    service_ns: NDArray[np.int64]
    pass_index: NDArray[np.int32]
    query: NDArray[np.int64]
    active_share: NDArray[np.float32]

    def __post_init__(self) -> None:
        _columns(
            self,
            service_ns=np.int64,
            pass_index=np.int32,
            query=np.int64,
            active_share=np.float32,
        )
        if self.service_ns.size and self.service_ns.min() <= 0:
            raise RunError(
                f"LatencySample.service_ns: query {int(self.service_ns.argmin())} took "
                f"{int(self.service_ns.min())} ns; a service time is longer than zero"
            )
        if self.query.size and min(self.pass_index.min(), self.query.min()) < 0:
            raise RunError("LatencySample: pass_index and query count from 0")
        keys = np.stack([self.pass_index.astype(np.int64), self.query], axis=1)
        if np.unique(keys, axis=0).shape[0] < keys.shape[0]:
            raise RunError("LatencySample: a query occurs twice in one pass")


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Figures of one arm in one scenario; None is "not measured", never zero."""

    rows: int | None = None
    seconds: float | None = None
    rows_per_second: float | None = None
    peak_rss_bytes: int | None = None
    baseline_rss_bytes: int | None = None
    peak_cuda_bytes: int | None = None
    state_bytes_per_entity: int | None = None
    weight_bytes: int | None = None
    activation_rate: float | None = None
    score_difference: float | None = None
    """Largest relative difference between single-stream and offline scores of the same rows."""
    late_share: float | None = None
    """Shadow: share of events that the candidate answered after the deadline."""
    response_p95_ms: float | None = None
    """Shadow: 95th percentile from when an event was due to the candidate's answer."""
    served_p95_ms: float | None = None
    """Shadow: the same of the incumbent's answer."""
    energy_joules: float | None = None
    """What the accelerator's counter rose by, over `timed` rows."""
    timed_rows: int | None = None
    """Rows that `seconds` and `energy_joules` are over; None where these are all `rows`."""
    submodule_rates: Mapping[str, float] = field(default_factory=dict)
    """Share of steps that ran each sub-module, named such as ``layer 0 gated_attention``."""

    @property
    def timed(self) -> int | None:
        """Rows that `seconds` and `energy_joules` are over."""
        return self.rows if self.timed_rows is None else self.timed_rows


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything a replay measured.

    Attributes
    ----------
    entities : tuple of str
        Names of the entities; `ArmScores.entity` indexes them.
    scores : mapping slice -> arm -> ArmScores
        Slices `VALIDATION` and `JUDGED`; arms of `ARMS`.
    latency : mapping arm -> LatencySample
        Single-stream service times.
    legs : mapping "<arm>/<scenario>" -> Leg
        Scenarios `OFFLINE` and `SINGLE_STREAM`.
    dataset, environment : mapping
        JSON-ready descriptions that the result hands on unread.
    """

    entities: tuple[str, ...]
    scores: Mapping[str, Mapping[str, ArmScores]]
    latency: Mapping[str, LatencySample] = field(default_factory=dict)
    legs: Mapping[str, Leg] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    guard: GuardRecord | None = None
    """None when no guarded leg ran."""
    load: Mapping[str, LoadSample] = field(default_factory=dict)
    """By "<arm>/<scenario>": scenarios `MULTI_STREAM` and `SERVER`."""

    def __post_init__(self) -> None:
        for slice_name in SLICES:
            present = self.scores.get(slice_name, {})
            for needed in (INCUMBENT, CANDIDATE):
                if needed not in present:
                    raise RunError(f"measurements: no scores of arm {needed!r} on {slice_name!r}")
        unknown = {arm for arms in self.scores.values() for arm in arms} - set(ARMS)
        unknown |= set(self.latency) - set(ARMS)
        if unknown:
            raise RunError(f"measurements: unknown arms {sorted(unknown)}; known: {list(ARMS)}")

    def leg(self, arm: str, scenario: str) -> Leg:
        """Return a leg; one that did not run has every figure `None`."""
        return self.legs.get(f"{arm}/{scenario}", Leg())


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedSlice:
    """The rows of one slice with every arm's score, sorted by entity, then time.

    Attributes
    ----------
    entity, time, label : [N]
        As in `ArmScores`, once for all arms.
    scores : mapping arm -> float32 [N]
    predicted, squared_error : mapping arm -> [N]
        As in `ArmScores`; without an arm where no classes are told.
    classes : tuple of str
        Names of the classes.
    """

    name: str
    entity: NDArray[np.int32]
    time: NDArray[np.int64]
    label: NDArray[np.int32]
    scores: Mapping[str, NDArray[np.float32]]
    predicted: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    squared_error: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return self.time.size

    def take(self, rows: NDArray[np.int64], **changes: Any) -> Self:
        """Return these rows [R] alone, some columns changed."""
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ROW_COLUMNS}
        for name in ("scores", *CLASS_COLUMNS):
            kept[name] = {arm: values[rows] for arm, values in getattr(self, name).items()}
        return replace(self, **kept | changes)

    @classmethod
    def align(cls, measurements: Measurements, name: str) -> Self:
        """Put the arms' scores of slice `name` side by side.

        Raises
        ------
        RunError
            When an arm has other rows or labels than the incumbent, an (entity, time) occurs
            twice, or an entity code has no name.
        """
        arms = measurements.scores[name]
        columns: dict[str, tuple[np.ndarray, ...]] = {}
        predicted: dict[str, NDArray[np.int32]] = {}
        squared_error: dict[str, NDArray[np.float32]] = {}
        for arm, table in arms.items():
            order = np.lexsort((table.time, table.entity))
            entity, time = table.entity[order], table.time[order]
            columns[arm] = (entity, time, table.label[order], table.score[order])
            if table.predicted is not None and table.squared_error is not None:
                predicted[arm] = table.predicted[order]
                squared_error[arm] = table.squared_error[order]
        entity, time, label, _ = columns[INCUMBENT]
        if entity.size and not 0 <= entity[0] <= entity[-1] < len(measurements.entities):
            raise RunError(
                f"{name}: entity codes {entity[0]}..{entity[-1]} do not fit "
                f"{len(measurements.entities)} entity names"
            )
        twice = (np.diff(entity) == 0) & (np.diff(time) == 0)
        if twice.any():
            row = int(twice.argmax())
            raise RunError(
                f"{name}: entity {measurements.entities[entity[row]]!r} has two rows "
                f"at time {time[row]} ns"
            )
        for arm, (*keys, _) in columns.items():
            for column, own, reference in zip(
                ("entity", "time", "label"), keys, (entity, time, label), strict=True
            ):
                if own.size != reference.size:
                    raise RunError(
                        f"{name}: arm {arm!r} has {own.size} rows, {INCUMBENT!r} has "
                        f"{reference.size}; replay both on the same data set"
                    )
                if not np.array_equal(own, reference):
                    row = int((own != reference).argmax())
                    raise RunError(
                        f"{name}: arm {arm!r} and {INCUMBENT!r} differ in {column} at row {row} "
                        f"({own[row]} and {reference[row]}); replay both on the same data set"
                    )
        return cls(
            name=name,
            entity=entity,
            time=time,
            label=label,
            scores={arm: column[-1] for arm, column in columns.items()},
            predicted=predicted,
            squared_error=squared_error,
            classes=tuple(measurements.dataset.get("classes", ())) if predicted else (),
        )
