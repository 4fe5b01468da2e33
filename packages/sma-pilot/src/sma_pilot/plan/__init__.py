"""The plan of a pilot: everything that is decided before a row is replayed.

`load_plan` reads a ``pilot.toml`` into frozen, validated models. `Plan.digest` is the plan's
fingerprint: each later step writes it down, and a folder made under another plan is refused.
"""

from sma_pilot.plan.arms import (
    ArmPlan,
    Arms,
    CountPCAPlan,
    KMeansPlan,
    PCAPlan,
    SklearnPlan,
    SMAPlan,
)
from sma_pilot.plan.document import Plan, load_plan, parse_plan
from sma_pilot.plan.foreign_arms import CheckpointPlan, PyfuncPlan, RecordedPlan
from sma_pilot.plan.guard import GuardPlan
from sma_pilot.plan.log import Border, LogSource, Slices
from sma_pilot.plan.monitor import MonitorPlan
from sma_pilot.plan.replay import ReplayPlan, ServerPlan
from sma_pilot.plan.savings import (
    Appraisal,
    Capacity,
    Efficiency,
    FallbackPrice,
    Money,
    Price,
)
from sma_pilot.plan.stages import StageKind, StagePlan
from sma_pilot.plan.task import TASKS_OF_METRIC, Quality, Task
from sma_pilot.plan.text import LineFormat, Mask, TextSource
from sma_pilot.plan.values import Duration, Moment, Section, format_duration, parse_duration

__all__ = [
    "TASKS_OF_METRIC",
    "Appraisal",
    "ArmPlan",
    "Arms",
    "Border",
    "Capacity",
    "CheckpointPlan",
    "CountPCAPlan",
    "Duration",
    "Efficiency",
    "FallbackPrice",
    "GuardPlan",
    "KMeansPlan",
    "LineFormat",
    "LogSource",
    "Mask",
    "Moment",
    "Money",
    "MonitorPlan",
    "PCAPlan",
    "Plan",
    "Price",
    "PyfuncPlan",
    "Quality",
    "RecordedPlan",
    "ReplayPlan",
    "SMAPlan",
    "Section",
    "ServerPlan",
    "SklearnPlan",
    "Slices",
    "StageKind",
    "StagePlan",
    "Task",
    "TextSource",
    "format_duration",
    "load_plan",
    "parse_duration",
    "parse_plan",
]
