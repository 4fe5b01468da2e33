"""What a go rests on: the signed measurements, and the rows that they were taken on."""

from collections.abc import Mapping
from dataclasses import dataclass

from sma_core import DatasetError
from sma_core.dataset import PreparedDataset
from sma_pilot.decision.record import Decision, load_decisions
from sma_pilot.decision.verification import verify
from sma_pilot.errors import RunError
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, JUDGED, Measurements
from sma_pilot.judge.result import Kpi
from sma_pilot.logs.slices import iso
from sma_pilot.monitor.finding import COLLAPSED
from sma_pilot.monitor.routing import collapsed_share
from sma_pilot.plan import MonitorPlan, Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.timeline import Window
from sma_pilot.report.evidence import read_result
from sma_pilot.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """A signed go, and what it rests on.

    Attributes
    ----------
    plan : Plan
        As its last stage reads it, at the plan's own alpha.
    decision : Decision
    dataset : PreparedDataset
    measurements : Measurements
    kpis : mapping name -> Kpi
        Of the signed result, and `COLLAPSED`.
    judged : Window
        The rows that were judged.
    """

    plan: Plan
    decision: Decision
    dataset: PreparedDataset
    measurements: Measurements
    kpis: Mapping[str, Kpi]
    judged: Window

    @classmethod
    def read(cls, run: RunFolder, on_progress: OnProgress) -> "Basis":
        """Read what was signed last, of a pilot in stages that of its last stage.

        Raises
        ------
        RunError
            When that is no go, or the run was changed since.
        """
        plan = run.load_plan()
        last = run.at(plan.stages[-1].name) if plan.stages else run
        decision = _signed_go(last, run)
        if not verify(run, on_progress=on_progress).is_intact:
            raise RunError(
                f"{run.path}: changed since it was signed, so what comes now has nothing to be "
                f"held against; `sma-pilot verify {run.path}` lists what was"
            )
        try:
            dataset = PreparedDataset.open(run.dataset)
        except DatasetError as error:
            raise RunError(f"{error}; put the data set back from a copy") from error
        measurements = load_measurements(*last.replays)
        time = measurements.scores[JUDGED][INCUMBENT].time
        if not time.size:
            raise RunError(f"{last.path}: no row was judged; run the pilot on a longer log")
        result, _ = read_result(last.result)
        kpis = {kpi.name: kpi for kpi in result.kpis}
        collapsed = collapsed_share(last.replays, plan.monitor or MonitorPlan())
        kpis[COLLAPSED] = Kpi(name=COLLAPSED, arm=CANDIDATE, value=collapsed, unit="")
        return cls(
            plan=plan.reading(plan.stages[-1], plan.quality.alpha) if plan.stages else plan,
            decision=decision,
            dataset=dataset,
            measurements=measurements,
            kpis=kpis,
            judged=Window(int(time.min()), int(time.max()) + 1),
        )

    @property
    def until(self) -> str:
        """Where the judged rows end, for people."""
        return iso(self.judged.until_ns - 1)


def _signed_go(last: RunFolder, run: RunFolder) -> Decision:
    """Return the go that the candidate runs by."""
    stage = "" if last.stage is None else f" --stage {last.stage}"
    decisions = load_decisions(last) if last.path.is_dir() else ()
    if not decisions:
        where = f"stage {last.stage} of this pilot" if last.stage else "this pilot"
        raise RunError(
            f"{run.path}: nobody has signed {where}, and a monitor follows a go; "
            f"`sma-pilot sign {run.path}{stage} --decision go --by NAME --reason TEXT`"
        )
    if decisions[-1].decision != "go":
        raise RunError(
            f"{run.path}: {decisions[-1].by} signed {decisions[-1].decision}, so the candidate "
            "serves nothing that a monitor could watch"
        )
    return decisions[-1]
