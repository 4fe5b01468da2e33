"""Looks: the level of each, and the card that it leaves.

A look's folder, ``stages/NAME/look-N``, is a replay of the rows since the look before, with the
``result.json`` of all rows of the stage up to it. ``look.json`` is written last: a folder with it
is a look that was taken, and no look is ever taken again.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sma_pilot.errors import RunError
from sma_pilot.judge.result import Result, Verdict
from sma_pilot.judge.safety import SAFETY
from sma_pilot.judge.sequential import nominal_levels
from sma_pilot.plan import Plan, StagePlan

FORMAT = "sma.look"
VERSION = 1
CARD = "look.json"


@dataclass(frozen=True, kw_only=True)
class Look:
    """Contents of ``look.json``.

    Parameters
    ----------
    stage : str
    number : int
        1 for the first of the stage.
    since_ns, until_ns : int
        Times of the rows that it added: from the first, up to the second (exclusive).
    alpha : float
        One-sided level at which it was judged.
    judged_at : str
        When that was: ISO 8601, UTC, by the clock of the machine.
    verdict : Verdict
        What the judge said.
    breaches : tuple of str
        The safety gates that failed, each the sentence that says so.
    headline : dict
        ``name``, ``value``, ``low``, ``high`` and ``limit`` of the gate on quality.
    """

    stage: str
    number: int
    since_ns: int
    until_ns: int
    alpha: float
    judged_at: str
    verdict: Verdict
    breaches: tuple[str, ...]
    headline: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def of(
        cls,
        result: Result,
        rows: tuple[int, int],
        *,
        alpha: float,
        stage: str,
        number: int,
        at: datetime,
    ) -> "Look":
        """Sum up what was judged at a look."""
        gate = next(kpi for kpi in result.kpis if kpi.is_gate and kpi.name.startswith("quality/"))
        document = gate.to_dict()
        low, high = document["interval"] or (None, None)
        return cls(
            stage=stage,
            number=number,
            since_ns=rows[0],
            until_ns=rows[1],
            alpha=alpha,
            judged_at=f"{at:%Y-%m-%dT%H:%M:%SZ}",
            verdict=result.verdict,
            breaches=tuple(
                reason.text
                for reason in result.reasons
                if reason.kpi.startswith(SAFETY) and reason.status == "fail"
            ),
            headline={
                "name": gate.name,
                "value": document["value"],
                "low": low,
                "high": high,
                "limit": document["threshold"],
            },
        )

    @classmethod
    def load(cls, path: Path) -> "Look":
        """Read a card; `RunError` when it is damaged or of another version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind = (content.pop("format", None), content.pop("version", None))
            if kind != (FORMAT, VERSION):
                raise RunError(f"{path}: not a look of version {VERSION}")
            return cls(**{**content, "breaches": tuple(content["breaches"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: damaged ({error}); put it back from a copy") from error


def levels(stage: StagePlan, plan: Plan) -> tuple[float, ...]:
    """Return the level of each look of `stage`, which share the plan's alpha."""
    return nominal_levels(stage.look_times, plan.quality.alpha, stage.spending)
