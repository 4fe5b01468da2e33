"""Check a log against its plan before anything is computed from it."""

from pathlib import Path

from sma_pilot.errors import LogError
from sma_pilot.logs.check_report import CheckReport
from sma_pilot.logs.facts import collect_facts
from sma_pilot.logs.findings import Finding, find
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.staging import PARTITION_BYTES
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress


def check_log(
    plan: Plan,
    data_dir: Path,
    on_progress: OnProgress | None = None,
    *,
    partition_bytes: int = PARTITION_BYTES,
) -> CheckReport:
    """Check schema, clock, order, slices, channels, labels, leakage and what can be proven.

    Parameters
    ----------
    plan : Plan
        The pilot's plan.
    data_dir : Path
        Where the plan's relative paths start.
    on_progress : OnProgress, optional
        Told the rows done by stage.
    partition_bytes : int
        Memory aimed at for one partition of the external sort.

    Returns
    -------
    CheckReport
        A log that cannot be read as the plan says has one finding of level ``error`` that names
        file, column and row; nothing is raised for it.
    """
    try:
        reader = LogReader(plan.log, data_dir)
        facts = collect_facts(
            reader,
            plan.log,
            plan.slices,
            plan.task.horizon,
            on_progress,
            partition_bytes,
            plan.task.window,
        )
    except LogError as error:
        return CheckReport(plan, (Finding("error", "schema", str(error)),), None)
    return CheckReport(plan, tuple(find(plan, facts)), facts)
