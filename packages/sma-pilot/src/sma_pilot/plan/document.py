"""The whole plan, its fingerprint, and its way out of a TOML file."""

import hashlib
import json
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from sma_pilot.errors import PlanError
from sma_pilot.plan.arms import ArmPlan, Arms
from sma_pilot.plan.guard import GuardPlan
from sma_pilot.plan.log import LogSource, Slices
from sma_pilot.plan.monitor import MonitorPlan
from sma_pilot.plan.replay import ReplayPlan
from sma_pilot.plan.savings import Efficiency, Money
from sma_pilot.plan.stages import StagePlan, check_stages
from sma_pilot.plan.task import TASKS_OF_METRIC, Quality, Task
from sma_pilot.plan.values import ArmSection, Section

Kind = TypeVar("Kind", bound=ArmSection)


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
    guard: GuardPlan | None = None
    stages: tuple[StagePlan, ...] = ()
    monitor: MonitorPlan | None = None
    """None: the defaults of `MonitorPlan`."""
    _frozen: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _arms_fit_task(self) -> Self:
        kind = self.task.kind
        for name, arm in self.named_arms().items():
            if arm.tasks and kind not in arm.tasks:
                raise ValueError(
                    f"arms.{name}: kind {arm.kind!r} cannot do task {kind!r}, only "
                    f"{', '.join(arm.tasks)}"
                )
            if getattr(arm, "values", None) == "log" and self.log.scaling != "global":
                raise ValueError(
                    f"arms.{name}.values: 'log' needs log.scaling = 'global'; what an entity's own "
                    "scaling made of a value cannot be told from the value"
                )
        return self

    @model_validator(mode="after")
    def _recorded_arms_need_no_replay(self) -> Self:
        recorded = [name for name in self.named_arms() if self.is_recorded(name)]
        if not recorded:
            return self
        where = f"arms.{recorded[0]}: kind 'recorded' is not run"
        if self.replay.scenarios:
            raise ValueError(
                f"{where}, so it has no part in replay.scenarios; leave them out: "
                f"{', '.join(self.replay.scenarios)}"
            )
        taking_turns = {"incumbent", "candidate"} & set(recorded)
        if taking_turns and self.guard is not None:
            raise ValueError(f"{where}, and a guard has to run the candidate and the incumbent")
        if taking_turns and any(stage.kind == "shadow" for stage in self.stages):
            raise ValueError(
                f"{where}, and a shadow stage has to run the candidate and the incumbent"
            )
        return self

    @model_validator(mode="after")
    def _log_fits_task(self) -> Self:
        kind, log = self.task.kind, self.log
        if (log.class_label is not None) != self.task.by_class:
            raise ValueError(
                "log.class_label: name the column of the class for task 'classification', and for "
                "no other"
            )
        if self.task.horizon is not None and log.label is None:
            raise ValueError(f"log.label is needed by task {kind!r}: it learns from events")
        if not log.numeric and (kind == "forecast_anomaly" or not log.has_words):
            raise ValueError("log.numeric: name a column that holds numbers")
        if self.task.by_class:
            self._log_fits_classes()
        if kind != "session_anomaly":
            return self
        if not log.has_entity:
            raise ValueError("log.entity is needed by task 'session_anomaly': it names the session")
        if not log.has_words:
            raise ValueError(
                "log.categorical: name the column of event ids, or that of their text in log.text"
            )
        if log.duplicates != "keep":
            raise ValueError(
                "log.duplicates: events of one session at the same time are no duplicates; "
                "task 'session_anomaly' needs 'keep'"
            )
        return self

    def _log_fits_classes(self) -> None:
        log, window = self.log, self.task.window
        if log.label is not None:
            raise ValueError(
                "log.label: task 'classification' knows no events; its column is log.class_label"
            )
        if window is None and not log.has_entity:
            raise ValueError(
                "task.window: without it an entity is a session and told once, and log.entity is "
                "not named; give one of the two"
            )
        if window is not None and window < log.period:
            raise ValueError("task.window: shorter than log.period, the time between two rows")
        counting = [r for r, arm in self.named_arms().items() if arm.kind == "count_logistic"]
        if counting and (window is not None or not log.has_words):
            raise ValueError(
                f"arms.{counting[0]}: kind 'count_logistic' counts the values of log.categorical "
                "over a session, so it needs such a column and no task.window; take 'logistic'"
            )

    @model_validator(mode="after")
    def _alarms_fit_task(self) -> Self:
        by_class = self.task.by_class
        for name in ("false_alarms_per_day", "alarm_merge"):
            if (getattr(self.quality, name) is None) != by_class:
                what = "unknown to" if by_class else "needed by"
                raise ValueError(
                    f"quality.{name} is {what} task {self.task.kind!r}: it is about alarms"
                )
        if by_class and (self.stages or self.guard is not None):
            name = "stages" if self.stages else "guard"
            raise ValueError(
                f"{name}: task 'classification' is replayed offline and in a single stream; what "
                "stages and guards watch are alarms, and it raises none"
            )
        return self

    @model_validator(mode="after")
    def _headline_fits_task(self) -> Self:
        headline, kind = self.quality.headline, self.task.kind
        if kind not in TASKS_OF_METRIC.get(headline, (kind,)):
            raise ValueError(
                f"quality.headline: {headline!r} is no metric of task {kind!r}, only of "
                f"{', '.join(TASKS_OF_METRIC[headline])}"
            )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        check_stages(self.stages, self.slices)
        if self.guard is None and any(own.fallback_limit is not None for own in self.stages):
            raise ValueError("stages: `fallback_limit` needs a table `guard`")
        return self

    def named_arms(self) -> dict[str, ArmPlan]:
        """Return the arms by role, an absent baseline left out."""
        roles = {
            "incumbent": self.arms.incumbent,
            "candidate": self.arms.candidate,
            "baseline": self.arms.baseline,
        }
        return {role: arm for role, arm in roles.items() if arm is not None}

    def arm(self, role: str, kind: type[Kind]) -> Kind:
        """Return the arm in `role`, which is known to be of that kind."""
        arm = self.named_arms()[role]
        assert isinstance(arm, kind)  # noqa: S101  (whoever asks was chosen by kind)
        return arm

    def is_recorded(self, role: str) -> bool:
        """Tell whether the arm in `role` is not run, as the log has what it said."""
        return self.named_arms()[role].kind == "recorded"

    @property
    def step(self) -> timedelta:
        """The time that one judged row stands for: a period, or a window that is told once."""
        return self.task.window or self.log.period

    def stage(self, name: str) -> StagePlan:
        """Return the stage called `name`.

        Raises
        ------
        PlanError
            When the plan has none of that name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages) or "none"
        raise PlanError(f"{self.name}: the plan has no stage {name!r}; its stages: {known}")

    def reading(self, stage: StagePlan, alpha: float) -> Self:
        """Return the plan as one look of `stage` is judged by it, at the level `alpha`."""
        quality = {"alpha": alpha, **_given(loss_limit=stage.loss_limit)}
        quality |= _given(minimum_events=stage.minimum_events)
        efficiency = _given(
            latency_ratio_limit=stage.latency_ratio_limit,
            memory_ratio_limit=stage.memory_ratio_limit,
        )
        read = self.model_copy(
            update={
                "stages": (stage,),
                "quality": self.quality.model_copy(update=quality),
                "efficiency": self.efficiency.model_copy(update=efficiency),
            }
        )
        read._frozen = self.digest
        return read

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON: the same for the same decisions, however typed.

        What a stage reads from the plan (`reading`) has the digest of the plan that was frozen.
        """
        if self._frozen:
            return self._frozen
        content = self.model_dump(mode="json")
        if self.monitor is None:
            del content["monitor"]  # a plan that was frozen before there was one keeps its digest
        document = json.dumps(content, sort_keys=True, separators=(",", ":"))
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


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _describe(problem: Any) -> str:
    path, message = list(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    kind = None
    if path[:1] == ["arms"] and len(path) > 2:
        kind = path.pop(2)  # which class of arm it was read as
    # Union branches and validators leave their own names in the location; a user knows fields only.
    inner = {"float", "datetime", "constrained-float", "constrained-int"}
    place = ".".join(
        str(part) for part in path if part not in inner and not str(part).startswith("function-")
    )
    match problem["type"]:
        case "extra_forbidden":
            message = "unknown field" + (f" of kind {kind!r}" if kind else "")
        case "union_tag_invalid" | "union_tag_not_found":
            place = f"{place}.kind"
            known = problem["ctx"].get("expected_tags", "")
            message = f"none of {known}" if known else "Field required"
    return f"{place or 'plan'}: {message}"
