"""How a pilot in stages stands, told from its files alone: what each stage came to, what is next.

A stage is looked at until its slice ends. The first look that is not inconclusive decides it; the
looks after a go only watch, and a breach that they find stops the stage all the same, whether
somebody signed meanwhile or not. The next stage starts when the one before is go, all its looks
were taken, and the signature is there if the plan asks for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sma_pilot.decision.record import Decision, load_decisions
from sma_pilot.errors import DecisionError
from sma_pilot.judge.result import Verdict
from sma_pilot.plan import Plan, StagePlan
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.look import Look

State = Literal["waiting", "open", "pending", "go", "no-go", "inconclusive", "stopped"]
"""``waiting``: not reached. ``open``: undecided, with looks to come. ``pending``: go, and waits for
a signature. ``stopped``: by a safety gate, or by a signed no-go."""

ENDS: tuple[State, ...] = ("no-go", "inconclusive", "stopped")
"""States after which no other stage starts."""


@dataclass(frozen=True, kw_only=True)
class StageStanding:
    """What became of one stage.

    Attributes
    ----------
    stage : StagePlan
    state : State
    text : str
        The state in a sentence, with its reason.
    looks : tuple of Look
        Those that were taken.
    decision : Decision or None
        The newest one.
    """

    stage: StagePlan
    state: State
    text: str
    looks: tuple[Look, ...] = ()
    decision: Decision | None = None

    @property
    def deciding(self) -> Look | None:
        """The look that decided; None while none did."""
        return next((look for look in self.looks if look.verdict != "inconclusive"), None)

    @property
    def next_look(self) -> int | None:
        """Number of the look to take next; None when there is none, or no use for one."""
        if self.state in ("waiting", *ENDS) or len(self.looks) == len(self.stage.look_times):
            return None
        return len(self.looks) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        decision = self.decision
        return {
            "name": self.stage.name,
            "kind": self.stage.kind,
            "state": self.state,
            "text": self.text,
            "signature_required": self.stage.signature_required,
            "looks": [look.to_dict() for look in self.looks],
            "looks_planned": len(self.stage.look_times),
            "decision": None
            if decision is None
            else {
                "decision": decision.decision,
                "by": decision.by,
                "reason": decision.reason,
                "signed_at": decision.signed_at,
                "override": decision.override,
                "sha256": decision.sha256,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a pilot stands, stage by stage."""

    plan: Plan
    stages: tuple[StageStanding, ...]

    @property
    def current(self) -> StageStanding:
        """The stage that the pilot is at: the last that is not waiting."""
        reached = [own for own in self.stages if own.state != "waiting"]
        return reached[-1]

    @property
    def next(self) -> tuple[StageStanding, int] | None:
        """The look to take next, with its stage; None when the pilot ended or waits."""
        number = self.current.next_look
        return None if number is None else (self.current, number)

    @property
    def verdict(self) -> Verdict:
        """Go when every stage is; no-go when one is or was stopped; else inconclusive."""
        if any(own.state in ("no-go", "stopped") for own in self.stages):
            return "no-go"
        return "go" if all(own.state == "go" for own in self.stages) else "inconclusive"

    def text(self, run: str) -> str:
        """Say in a sentence what came of the pilot, or what it waits for.

        Parameters
        ----------
        run : str
            The run folder, for the command to type.
        """
        own = self.current
        if own.state == "pending":
            return (
                f"stage {own.stage.name} is go; waits for `sma-pilot sign {run} "
                f"--stage {own.stage.name} --decision go --by NAME --reason TEXT`"
            )
        if own.state == "open" or self.next is not None:
            return f"stage {own.stage.name}: look {self.next[1] if self.next else 1} comes next"
        if self.verdict == "go":
            return "every stage is go"
        return f"the pilot ended at stage {own.stage.name}: {own.text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "plan": {"name": self.plan.name, "digest": self.plan.digest},
            "verdict": self.verdict,
            "stage": self.current.stage.name,
            "state": self.current.state,
            "stages": [own.to_dict() for own in self.stages],
        }


def standing(run: RunFolder) -> Standing:
    """Read how the pilot in stages at `run` stands.

    Raises
    ------
    RunError
        When `run` is no run folder, or a look or a decision in it is damaged.
    """
    plan = RunFolder(run.root).load_plan()
    stages: list[StageStanding] = []
    for stage in plan.stages:
        before = stages[-1] if stages else None
        if before is not None and (before.state != "go" or before.next_look is not None):
            name = before.stage.name
            stages.append(StageStanding(stage=stage, state="waiting", text=f"waits for {name}"))
            continue
        folder = run.at(stage.name)
        decisions = load_decisions(folder) if folder.path.is_dir() else ()
        stages.append(assess(stage, folder.looks(), decisions))
    return Standing(plan=plan, stages=tuple(stages))


def assess(stage: StagePlan, looks: Sequence[Look], decisions: Sequence[Decision]) -> StageStanding:
    """Return what became of a stage that was reached, by its looks and decisions."""
    decision = decisions[-1] if decisions else None
    state, text = _state(stage, looks, decision)
    return StageStanding(stage=stage, state=state, text=text, looks=tuple(looks), decision=decision)


def _state(stage: StagePlan, looks: Sequence[Look], decision: Decision | None) -> tuple[State, str]:
    breached = next((look for look in looks if look.breaches), None)
    if breached is not None:
        return "stopped", f"stopped at look {breached.number}: {breached.breaches[0]}"
    if decision is not None and decision.decision == "no-go":
        return "stopped", f"stopped by {decision.by}: {decision.reason}"
    planned = len(stage.look_times)
    deciding = next((look for look in looks if look.verdict != "inconclusive"), None)
    if deciding is None:
        if len(looks) < planned:
            return "open", f"{len(looks)} of {planned} looks taken, undecided"
        return "inconclusive", f"inconclusive after all {planned} looks"
    at = f"at look {deciding.number} of {planned}"
    if deciding.verdict == "no-go":
        return "no-go", f"no-go {at}"
    if not stage.signature_required:
        return "go", f"go {at}"
    # An override of an inconclusive verdict is a decision too, but no proof: the look above is.
    if decision is None or decision.verdict != "go":
        return "pending", f"go {at}, not signed yet"
    return "go", f"go {at}, signed by {decision.by}"


def refuse_breached(run: RunFolder) -> None:
    """Refuse a go for a stage that a safety gate stopped, at whichever look that was.

    Raises
    ------
    DecisionError
        Naming the look and the gate.
    """
    for look in run.looks() if run.stage is not None else ():
        if look.breaches:
            raise DecisionError(
                f"--decision go: stage {look.stage} was stopped at look {look.number}, and no "
                f"signature starts it again: {look.breaches[0]}"
            )
