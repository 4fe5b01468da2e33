"""The folder of one pilot: where each step finds what the step before it left.

The name carries the plan's fingerprint, so that a changed plan lands in a folder of its own and
never mixes with what an earlier plan measured.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sma_core import files
from sma_pilot.errors import RunError
from sma_pilot.plan import Plan


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` at `path` whole or not at all; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, document)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a pilot's parts, whether they exist yet or not."""

    path: Path

    @property
    def plan(self) -> Path:
        """The frozen plan, as JSON, with its digest."""
        return self.path / "plan.json"

    @property
    def assessment(self) -> Path:
        """What the log lets expect of sparse activation, as JSON."""
        return self.path / "assessment.json"

    @property
    def assessment_page(self) -> Path:
        """The same as a page."""
        return self.path / "assessment.html"

    @property
    def dataset(self) -> Path:
        """The prepared data set."""
        return self.path / "dataset"

    @property
    def models(self) -> Path:
        """One folder per arm."""
        return self.path / "models"

    @property
    def replay(self) -> Path:
        """The measurements."""
        return self.path / "replay"

    @property
    def result(self) -> Path:
        """The verdict with its reasons."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The one-page report."""
        return self.path / "report.html"

    @property
    def decisions(self) -> Path:
        """One record a signed decision."""
        return self.path / "decisions"

    @classmethod
    def create(cls, plan: Plan, root: Path) -> "RunFolder":
        """Return the plan's folder under `root`, made if it is not there, its plan frozen in it."""
        run = cls(root / f"{plan.name}-{plan.digest[:8]}")
        if not run.plan.exists():
            write_json(run.plan, {"digest": plan.digest, "plan": plan.model_dump(mode="json")})
        run.load_plan()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the existing run folder at `path`.

        Raises
        ------
        RunError
            When `path` is no run folder, or its plan was changed by hand.
        """
        run = cls(path)
        run.load_plan()
        return run

    def load_plan(self) -> Plan:
        """Read the frozen plan back and check it against its digest."""
        try:
            document = json.loads(self.plan.read_text(encoding="utf-8"))
            plan = Plan.model_validate(document["plan"])
            digest = document["digest"]
        except OSError as error:
            raise RunError(
                f"{self.path}: not a run folder (no readable plan.json); "
                "give the folder that `sma-pilot run` printed"
            ) from error
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.plan}: not a frozen plan of this version: {error}") from error
        if plan.digest != digest:
            raise RunError(
                f"{self.plan}: the plan was changed after it was frozen; "
                "run the changed plan as a pilot of its own"
            )
        return plan
