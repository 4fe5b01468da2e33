"""The plan of a pilot: everything that is decided before a row is replayed.

`load_plan` reads a ``pilot.toml`` into frozen, validated models. `Plan.digest` is the plan's
fingerprint: each later step writes it down, and a folder made under another plan is refused.
"""

import hashlib
import json
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from sma_pilot.errors import PlanError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_duration(value: object) -> timedelta:
    """Read ``"90s"``, ``"1.5h"``, ``"250ms"``, ``"2d"``: a number and one of ms, s, m, h, d."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a duration is a number and a unit in quotes, such as "5m" or "250ms"')
    duration = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if duration <= timedelta(0):
        raise ValueError("a duration must be longer than zero")
    # What the frozen plan could not say would let two plans share a fingerprint.
    if duration % timedelta(milliseconds=1):
        raise ValueError("a duration is a whole number of milliseconds")
    return duration


def format_duration(duration: timedelta) -> str:
    """Write a duration in the largest unit that holds it as a whole number."""
    milliseconds = round(duration / timedelta(milliseconds=1))
    for unit, seconds in reversed(_UNITS.items()):
        size = round(seconds * 1000)
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    raise AssertionError("unreachable: a millisecond divides every duration")


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
Moment = Annotated[datetime, AfterValidator(_utc)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def _share_or_moment(value: object) -> object:
    # A number would pass for seconds since 1970.
    if isinstance(value, int | float) and not 0.0 < value < 1.0:
        raise ValueError("a border is a share of the time span, between 0 and 1, or a timestamp")
    return value


# A border between slices: a share of the log's time span, or a point in time.
Border = Annotated[Share | Moment, BeforeValidator(_share_or_moment)]


class Section(BaseModel):
    """A table of the plan: frozen, and strict about names so that a typing slip is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LogSource(Section):
    """Which files hold the log and what its columns mean."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths or glob patterns, relative to the data folder."""
    time: str
    """Column of the timestamp; without a zone it is taken as UTC."""
    entity: str | None = None
    """Column that names the machine; None for a log of one machine."""
    label: str | None = None
    """Column that marks an anomaly or failure (0 or null: none); for judging, and for `alarm`."""
    numeric: Annotated[tuple[str, ...], Field(min_length=1)]
    """Numeric columns, by name or glob pattern."""
    categorical: tuple[str, ...] = ()
    """Columns of discrete values, by name or glob pattern."""
    period: Duration
    """Usual time between two rows of one entity."""
    max_gap: Duration
    """A longer silence of an entity starts a new sequence, with fresh state."""
    duplicates: Literal["first", "last"] = "last"
    """Which row stands when an entity has two of the same time, in the order of the files."""
    scaling: Literal["per_entity", "global"] = "per_entity"
    """Whether centre and scale (of training rows) are taken for each entity or for all."""


class Slices(Section):
    """Cuts the log's time into train, validation and judged, in this order."""

    validation_from: Border
    judged_from: Border
    judged_until: Border | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        borders = [self.validation_from, self.judged_from, self.judged_until]
        given = [border for border in borders if border is not None]
        if len({type(border) for border in given}) > 1:
            raise ValueError("give all borders as shares of the time span, or all as timestamps")
        if given != sorted(given) or len(set(given)) < len(given):  # pyright: ignore[reportArgumentType]
            raise ValueError("need validation_from < judged_from < judged_until")
        return self


class Task(Section):
    """What the models predict and how a score comes from it."""

    kind: Literal["forecast_anomaly", "alarm"]
    """forecast_anomaly: the next row's forecast error, labels only judge. alarm: P(event < h)."""
    horizon: Duration | None = None
    """alarm: how far ahead an event is to be announced."""
    smoothing: Annotated[int, Field(ge=1, le=10_000)] = 1
    """forecast_anomaly: rows over which the error is averaged, exponentially."""

    @model_validator(mode="after")
    def _horizon_goes_with_alarm(self) -> Self:
        if (self.kind == "alarm") != (self.horizon is not None):
            raise ValueError("`horizon` is needed by kind 'alarm' and unknown to the other kinds")
        return self


class Quality(Section):
    """The accuracy that must not be lost, and how the loss is proven."""

    headline: Literal["event_recall", "average_precision"] = "event_recall"
    loss_limit: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Largest loss that is accepted: incumbent minus candidate, in the headline's own unit."""
    false_alarms_per_day: Annotated[float, Field(gt=0.0)]
    """Alarms a day and entity outside events, allowed on validation rows: it sets thresholds."""
    alarm_merge: Duration
    """Rows over the threshold that are closer than this count as one alarm."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """One-sided error rate of every bound."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    block: Duration | None = None
    """Length of a bootstrap block; None: chosen from the autocorrelation of the loss."""
    minimum_events: Annotated[int, Field(ge=1)] = 10
    """Fewer judged events than this are inconclusive whatever the scores."""


class Efficiency(Section):
    """What the candidate must save to be worth a change."""

    latency_percentile: Annotated[float, Field(ge=50.0, lt=100.0)] = 95.0
    latency_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent, single stream."""
    memory_ratio_limit: Annotated[float, Field(gt=0.0)] = 1.0
    """Candidate over incumbent: streaming state per entity plus weights."""
    noise_band: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The incumbent against itself must give a ratio within 1 +- this, or timings prove nothing."""


class Money(Section):
    """Prices, each with its source; without this table cost is `not measured`."""

    currency: Annotated[str, Field(min_length=3, max_length=3)]
    price_per_hour: Annotated[float, Field(gt=0.0)]
    """Price of the machine that serves, an hour of its use."""
    price_source: str
    events_per_year: Annotated[float, Field(gt=0.0)]


class ArmPlan(Section):
    """One arm: a model to fit, or a checkpoint that is already there."""

    kind: Literal["sma", "dense_twin", "transformer", "checkpoint", "pca", "logistic"]
    checkpoint: str | None = None
    """kind checkpoint: its folder, relative to the data folder."""
    model: dict[str, Any] = {}
    """Fields of the architecture's configuration (inputs and head come from the data set)."""
    training: dict[str, Any] = {}
    """Fields of `sma_core.TrainingConfig`."""
    components: Annotated[int, Field(ge=1)] = 8
    """kind pca: number of components kept."""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if (self.kind == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("`checkpoint` names a folder for kind 'checkpoint' and for no other")
        if self.model and self.kind in ("checkpoint", "pca", "logistic", "dense_twin"):
            raise ValueError(f"kind {self.kind!r} takes no `model` table")
        if self.training and self.kind in ("checkpoint", "pca", "logistic"):
            raise ValueError(f"kind {self.kind!r} takes no `training` table")
        return self


class Arms(Section):
    """Who competes: what runs today, what may replace it, and the simplest thing that could."""

    incumbent: ArmPlan
    candidate: ArmPlan
    baseline: ArmPlan | None = None

    @model_validator(mode="after")
    def _twin_needs_sma(self) -> Self:
        if self.incumbent.kind == "dense_twin" and self.candidate.kind != "sma":
            raise ValueError("incumbent kind 'dense_twin' is the twin of a candidate of kind 'sma'")
        return self


class ReplayPlan(Section):
    """How measurements are taken."""

    single_stream_events: Annotated[int, Field(ge=1)] = 2000
    """Judged events sent one at a time, per pass and arm; percentiles need some hundreds."""
    warmup_events: Annotated[int, Field(ge=0)] = 200
    passes: Annotated[int, Field(ge=1, le=100)] = 3
    """How often the single-stream scenario visits each arm, in random order."""
    chunk_rows: Annotated[int, Field(ge=16)] = 2048
    """Rows of one sequence that an offline forward takes at once."""
    threads: Annotated[int, Field(ge=1)] = 1
    device: Literal["cpu", "cuda"] = "cpu"


class Plan(Section):
    """A whole pilot, decided beforehand."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    seed: int = 0
    log: LogSource
    slices: Slices
    task: Task
    quality: Quality
    efficiency: Efficiency = Efficiency()
    money: Money | None = None
    arms: Arms
    replay: ReplayPlan = ReplayPlan()

    @model_validator(mode="after")
    def _baseline_fits_task(self) -> Self:
        baselines = {"forecast_anomaly": "pca", "alarm": "logistic"}
        for name, arm in self.named_arms().items():
            if arm.kind in baselines.values() and arm.kind != baselines[self.task.kind]:
                raise ValueError(
                    f"arms.{name}: kind {arm.kind!r} cannot do task {self.task.kind!r}"
                )
        if self.task.kind == "alarm" and self.log.label is None:
            raise ValueError("log.label is needed by task 'alarm': it learns from labelled events")
        return self

    def named_arms(self) -> dict[str, ArmPlan]:
        """Return the arms by role, an absent baseline left out."""
        roles = {
            "incumbent": self.arms.incumbent,
            "candidate": self.arms.candidate,
            "baseline": self.arms.baseline,
        }
        return {role: arm for role, arm in roles.items() if arm is not None}

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON: the same for the same decisions, however typed."""
        document = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()


def parse_plan(text: str, where: str) -> Plan:
    """Read a plan from TOML text; `where` names it in errors.

    Raises
    ------
    PlanError
        When the text is no TOML or a field is missing, unknown or out of range; each line names
        the field.
    """
    try:
        return Plan.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{where}: not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors(include_url=False)]
        raise PlanError(f"{where}: " + f"\n{where}: ".join(lines)) from error


def load_plan(path: Path) -> Plan:
    """Read the plan file at `path`; see `parse_plan` for the errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot read the plan: {error}") from error
    return parse_plan(text, str(path))


def _describe(problem: Any) -> str:
    # Union branches and validators leave their own names in the location; a user knows fields only.
    inner = {"float", "datetime", "constrained-float"}
    place = ".".join(
        str(part)
        for part in problem["loc"]
        if part not in inner and not str(part).startswith("function-")
    )
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Extra inputs are not permitted", "unknown field")
    return f"{place or 'plan'}: {message}"
