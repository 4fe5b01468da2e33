"""What the judge returns: KPIs, reasons and a verdict, and their JSON form (docs/result.md)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args

from sma_pilot.errors import RunError

FORMAT: Final = "sma.result"
VERSION: Final = 1

Verdict = Literal["go", "no-go", "inconclusive"]
Direction = Literal["lower", "higher"]
Status = Literal["pass", "fail", "inconclusive", "info", "not_measured"]
# A KPI with one of these decides; one that is `info` or `not_measured` only informs.
GATE_STATUSES: Final = ("pass", "fail", "inconclusive")


@dataclass(frozen=True, kw_only=True)
class Kpi:
    """One measured figure and how it stands against its threshold.

    Attributes
    ----------
    name : str
        Stable, grouped by slashes: ``quality/loss_event_recall``.
    arm : str or None
        The arm it describes; None for a comparison of arms.
    value : float or None
        None when it could not be measured.
    unit : str
        ``""`` for a pure number, ``"ratio"``, ``"ms"``, ``"bytes"``, ``"EUR/year"``, ...
    interval : (float, float) or None
        Each end is a one-sided bound at `confidence`.
    confidence : float or None
        Of each end of `interval`; the pair as such covers 2 `confidence` - 1.
    threshold : float or None
        The plan's limit that the KPI is held against.
    direction : "lower", "higher" or None
        Which way is better; None where neither is.
    status : Status
        ``pass``, ``fail`` and ``inconclusive`` are gates of the verdict.
    note : str
        What a reader must know to read the figure aright.
    """

    name: str
    value: float | None
    unit: str
    arm: str | None = None
    interval: tuple[float, float] | None = None
    confidence: float | None = None
    threshold: float | None = None
    direction: Direction | None = None
    status: Status = "info"
    note: str = ""

    @property
    def is_gate(self) -> bool:
        """Whether the verdict depends on this KPI."""
        return self.status in GATE_STATUSES

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; a figure that is not finite becomes null."""
        document = asdict(self)
        for name in ("value", "confidence", "threshold"):
            document[name] = _finite(document[name])
        if self.interval is not None:
            low, high = map(_finite, self.interval)
            document["interval"] = None if low is None or high is None else [low, high]
        return document

    @classmethod
    def from_dict(cls, document: object, where: str = "kpi") -> Self:
        """Read the JSON form; raise `RunError` naming the field that is wrong."""
        given = _object(document, [f.name for f in fields(cls)], where)
        interval = given["interval"]
        if interval is not None:
            if not isinstance(interval, list | tuple) or len(interval) != 2:
                raise RunError(f"{where}.interval: need null or two numbers, got {interval!r}")
            low, high = (_number(end, f"{where}.interval") for end in interval)
            interval = (low, high)
        return cls(
            name=_text(given["name"], f"{where}.name"),
            value=_maybe_number(given["value"], f"{where}.value"),
            unit=_text(given["unit"], f"{where}.unit"),
            arm=None if given["arm"] is None else _text(given["arm"], f"{where}.arm"),
            interval=interval,
            confidence=_maybe_number(given["confidence"], f"{where}.confidence"),
            threshold=_maybe_number(given["threshold"], f"{where}.threshold"),
            direction=_choice(
                given["direction"], (*get_args(Direction), None), f"{where}.direction"
            ),
            status=_choice(given["status"], get_args(Status), f"{where}.status"),
            note=_text(given["note"], f"{where}.note"),
        )


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One sentence behind the verdict, about one KPI."""

    kpi: str
    status: Status
    text: str

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: object, where: str = "reason") -> Self:
        """Read the JSON form; raise `RunError` naming the field that is wrong."""
        given = _object(document, [f.name for f in fields(cls)], where)
        return cls(
            kpi=_text(given["kpi"], f"{where}.kpi"),
            status=_choice(given["status"], get_args(Status), f"{where}.status"),
            text=_text(given["text"], f"{where}.text"),
        )


@dataclass(frozen=True, kw_only=True)
class MoreData:
    """How much more evidence would settle an open loss of quality, at the observed event rate.

    `events` and `days` are totals, judged data included; both are None when no amount of data of
    this kind would do.
    """

    text: str
    events: int | None = None
    further_events: int | None = None
    days: float | None = None
    further_days: float | None = None
    discordance: float | None = None
    """Share of events on which incumbent and candidate disagree; None for average precision."""
    design_effect: float | None = None
    """Variance under dependence over variance of independent events; None where not estimable."""
    power: float = 0.9
    """Chance of a pass with that much data, should the observed loss be the true one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {k: v if isinstance(v, str) else _finite(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: object, where: str = "more_data") -> Self:
        """Read the JSON form; raise `RunError` naming the field that is wrong."""
        given = _object(document, [f.name for f in fields(cls)], where)
        return cls(
            text=_text(given["text"], f"{where}.text"),
            events=_maybe_count(given["events"], f"{where}.events"),
            further_events=_maybe_count(given["further_events"], f"{where}.further_events"),
            days=_maybe_number(given["days"], f"{where}.days"),
            further_days=_maybe_number(given["further_days"], f"{where}.further_days"),
            discordance=_maybe_number(given["discordance"], f"{where}.discordance"),
            design_effect=_maybe_number(given["design_effect"], f"{where}.design_effect"),
            power=_number(given["power"], f"{where}.power"),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """A verdict, why, and every figure behind it."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    kpis: tuple[Kpi, ...]
    plan: Mapping[str, str]
    """``name`` and ``digest`` of the plan that was judged by."""
    more_data: MoreData | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, float | None] = field(default_factory=dict)
    """The incumbent against itself: what this machine calls equal."""

    def kpi(self, name: str) -> Kpi:
        """Return the KPI called `name`; `KeyError` when there is none."""
        for kpi in self.kpis:
            if kpi.name == name:
                return kpi
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of docs/result.md."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "verdict": self.verdict,
            "reasons": [reason.to_dict() for reason in self.reasons],
            "kpis": [kpi.to_dict() for kpi in self.kpis],
            "more_data": None if self.more_data is None else self.more_data.to_dict(),
            "plan": dict(self.plan),
            "dataset": dict(self.dataset),
            "environment": dict(self.environment),
            "noise": {name: _finite(value) for name, value in self.noise.items()},
        }

    @classmethod
    def from_dict(cls, document: object, where: str = "result") -> Self:
        """Read the JSON form.

        Raises
        ------
        RunError
            When it is no result of this version, or a field is missing, unknown or of a wrong
            type; the message names the field.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise RunError(f"{where}: not a result: `format` is not {FORMAT!r}")
        if document.get("version") != VERSION:
            raise RunError(
                f"{where}.version: this program reads version {VERSION}, "
                f"the file has {document.get('version')!r}; judge the run again"
            )
        names = ["format", "version", *(f.name for f in fields(cls))]
        given = _object(document, names, where)
        plan = _object(given["plan"], ["name", "digest"], f"{where}.plan")
        more = given["more_data"]
        return cls(
            verdict=_choice(given["verdict"], get_args(Verdict), f"{where}.verdict"),
            reasons=tuple(
                Reason.from_dict(item, f"{where}.reasons[{index}]")
                for index, item in enumerate(_list(given["reasons"], f"{where}.reasons"))
            ),
            kpis=tuple(
                Kpi.from_dict(item, f"{where}.kpis[{index}]")
                for index, item in enumerate(_list(given["kpis"], f"{where}.kpis"))
            ),
            plan={name: _text(value, f"{where}.plan.{name}") for name, value in plan.items()},
            more_data=None if more is None else MoreData.from_dict(more, f"{where}.more_data"),
            dataset=_mapping(given["dataset"], f"{where}.dataset"),
            environment=_mapping(given["environment"], f"{where}.environment"),
            noise={
                name: _maybe_number(value, f"{where}.noise.{name}")
                for name, value in _mapping(given["noise"], f"{where}.noise").items()
            },
        )


def _finite(value: Any) -> Any:
    return None if value is None or not math.isfinite(value) else value


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RunError(f"{where}: need an object, got {type(value).__name__}")
    return dict(value)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RunError(f"{where}: need a list, got {type(value).__name__}")
    return list(value)


def _object(value: object, names: list[str], where: str) -> dict[str, Any]:
    given = _mapping(value, where)
    for problem, wrong in (
        ("missing", [name for name in names if name not in given]),
        ("unknown", [name for name in given if name not in names]),
    ):
        if wrong:
            raise RunError(f"{where}: {problem} field {wrong[0]!r}; known fields: {names}")
    return given


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RunError(f"{where}: need text, got {value!r}")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RunError(f"{where}: need a finite number, got {value!r}")
    return value


def _maybe_number(value: object, where: str) -> float | None:
    return None if value is None else _number(value, where)


def _maybe_count(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RunError(f"{where}: need null or a whole number from 0, got {value!r}")
    return value


def _choice(value: object, known: tuple[Any, ...], where: str) -> Any:
    if value not in known:
        raise RunError(f"{where}: need one of {[k for k in known if k is not None]}, got {value!r}")
    return value
