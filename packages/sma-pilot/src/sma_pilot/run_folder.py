"""The folder of one pilot: where each step finds what the step before it left.

The name carries the plan's fingerprint, so that a changed plan lands in a folder of its own and
never mixes with what an earlier plan measured.

A pilot in stages has a folder for each in it, ``stages/NAME``. That is a run folder, too: plan,
data set and models are the pilot's, and the rest is its own. What judges, shows, signs and
verifies a pilot of one stage does the same to a stage of several.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sma_core import files
from sma_pilot.errors import RunError
from sma_pilot.plan import Plan
from sma_pilot.stages.look import CARD, Look, levels

STAGES = "stages"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` at `path` whole or not at all; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, document)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a pilot's parts, whether they exist yet or not."""

    path: Path

    @property
    def stage(self) -> str | None:
        """Name of the stage that this is the folder of; None for a pilot's own."""
        above = self.path.parent
        inside = above.name == STAGES and (above.parent / "plan.json").is_file()
        return self.path.name if inside else None

    @property
    def root(self) -> Path:
        """The pilot's own folder."""
        return self.path if self.stage is None else self.path.parent.parent

    def at(self, stage: str) -> "RunFolder":
        """Return the folder of one of the pilot's stages, whether it was reached or not."""
        return RunFolder(self.root / STAGES / stage)

    @property
    def plan(self) -> Path:
        """The frozen plan, as JSON, with its digest."""
        return self.root / "plan.json"

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
        return self.root / "dataset"

    @property
    def models(self) -> Path:
        """One folder per arm."""
        return self.root / "models"

    def look(self, number: int) -> Path:
        """Return the folder of a look of this stage, whether it was taken or not."""
        return self.path / f"look-{number}"

    def looks(self) -> tuple[Look, ...]:
        """Read the looks that this stage has taken, the first one first.

        Raises
        ------
        RunError
            When the card of one is damaged.
        """
        looks: list[Look] = []
        while (card := self.look(len(looks) + 1) / CARD).exists():
            looks.append(Look.load(card))
        return tuple(looks)

    @property
    def replays(self) -> tuple[Path, ...]:
        """The measurements that the verdict rests on: of a stage, those of its looks in order.

        They end with the look that decided; what came later only watched.
        """
        if self.stage is None:
            return (self.path / "replay",)
        looks = self.looks()
        deciding = next(
            (own.number for own in looks if own.verdict != "inconclusive"), max(len(looks), 1)
        )
        return tuple(self.look(number + 1) for number in range(deciding))

    @property
    def replay(self) -> Path:
        """The measurements; of a stage, those of the look that decided it."""
        return self.replays[-1]

    @property
    def result(self) -> Path:
        """The verdict with its reasons."""
        return (self.path if self.stage is None else self.replay) / "result.json"

    @property
    def report(self) -> Path:
        """The one-page report."""
        return self.path / "report.html"

    @property
    def decisions(self) -> Path:
        """One record a signed decision."""
        return self.path / "decisions"

    @property
    def monitor(self) -> Path:
        """The looks after a go; no decision rests on them, so none is signed over them."""
        return self.root / "monitor"

    @property
    def monitor_page(self) -> Path:
        """The page of these looks."""
        return self.monitor / "monitor.html"

    def name_of(self, path: Path) -> str:
        """Return the name of a file in the pilot's folder, as decisions list it."""
        return path.relative_to(self.root).as_posix()

    @property
    def parts(self) -> tuple[Path, ...]:
        """Files and folders that a decision rests on.

        For a stage these are plan, data set and models, all that the stages before it left, their
        decisions among them, and its own looks and page. What comes later is not.
        """
        if self.stage is None:
            return (self.path,)
        names = [stage.name for stage in self._frozen().stages]
        before = names[: names.index(self.stage)]
        return (
            self.plan,
            self.dataset,
            self.models,
            *(self.at(name).path for name in before),
            *self.replays,
            self.report,
        )

    @staticmethod
    def name_for(plan: Plan) -> str:
        """Return the name of the plan's folder."""
        return f"{plan.name}-{plan.digest[:8]}"

    @classmethod
    def create(cls, plan: Plan, root: Path) -> "RunFolder":
        """Return the plan's folder under `root`, made if it is not there, its plan frozen in it."""
        run = cls(root / cls.name_for(plan))
        if not run.plan.exists():
            write_json(run.plan, {"digest": plan.digest, "plan": plan.model_dump(mode="json")})
        run.load_plan()
        return run

    @classmethod
    def of(cls, plan: Plan, root: Path) -> "RunFolder":
        """Return the plan's existing folder under `root`.

        Raises
        ------
        RunError
            When there is none: the pilot was not run, elsewhere, or by another plan.
        """
        path = root / cls.name_for(plan)
        if not path.is_dir():
            raise RunError(
                f"{path}: not there; no pilot was run by this very plan with --out {root}. A plan "
                "that was changed since is another one: give the one that was signed"
            )
        return cls.open(path)

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
        """Read the frozen plan back and check it against its digest.

        For a stage it is what its deciding look reads from the plan.
        """
        plan = self._frozen()
        if self.stage is None:
            return plan
        stage = plan.stage(self.stage)
        return plan.reading(stage, levels(stage, plan)[len(self.replays) - 1])

    def _frozen(self) -> Plan:
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
