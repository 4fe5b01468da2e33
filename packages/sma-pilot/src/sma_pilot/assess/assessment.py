"""Assess a log before training: how unevenly difficulty lies, and what that could save."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sma_core.config import ArchitectureConfig, ModelConfig
from sma_core.dataset import PreparedDataset
from sma_pilot.arms import build_arms
from sma_pilot.arms.neural import NeuralArm
from sma_pilot.assess.answer import COVERED, Answer, answer
from sma_pilot.assess.concentration import Coverage, HardRuns, hard_runs
from sma_pilot.assess.difficulty import Difficulty, measure_difficulty
from sma_pilot.assess.savings import Ceilings, CostsAtRates, Saving
from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress

FORMAT: Final = "sma.assessment"
VERSION: Final = 1
HARDEST: Final = (0.01, 0.05, 0.1, 0.2)
RATES: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_SAME_RATE = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """What a log lets expect of sparse activation.

    Attributes
    ----------
    difficulty : Difficulty
        Held-out steps.
    hindsight, foreseen : Coverage
        Share of error by share of steps: hardest first, and hardest-looking first.
    runs : HardRuns
    costs : CostsAtRates
    ceilings : Ceilings or None
        Of the machine that times are estimated for.
    answer : Answer
    """

    plan: Plan
    dataset: PreparedDataset
    difficulty: Difficulty
    hindsight: Coverage
    foreseen: Coverage
    runs: HardRuns
    costs: CostsAtRates
    ceilings: Ceilings | None
    answer: Answer

    @property
    def savings(self) -> list[Saving]:
        """Costs at the answer's rate, and at each of `RATES` that is not as good as the same."""
        own = self.answer.rate
        others = (rate for rate in RATES if abs(rate - own) > _SAME_RATE)
        return [self.costs(rate) for rate in sorted((own, *others))]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; docs/assess.md lists the fields."""
        shares = np.array(HARDEST)
        own = self.difficulty
        return {
            "format": FORMAT,
            "version": VERSION,
            "plan": {"name": self.plan.name, "digest": self.plan.digest},
            "dataset_digest": self.dataset.card.digest,
            "answer": asdict(self.answer),
            "rows": {
                "train": own.fit_rows,
                "held_out": own.held_out_rows,
                "held_out_read": own.rows_read,
                "held_out_forecast": int(own.error.size),
            },
            "forecasts": {
                "best": own.best,
                "explained_variance": own.explained,
                "mean_squared_error": dict(own.mean_errors),
            },
            "concentration": {
                "hardest": list(HARDEST),
                "in_hindsight": self.hindsight(shares).tolist(),
                "foreseen": self.foreseen(shares).tolist(),
                "gini_in_hindsight": self.hindsight.gini,
                "gini_foreseen": self.foreseen.gini,
                "needed_in_hindsight": self.hindsight.needed(COVERED),
                "needed_foreseen": self.answer.rate,
                "covered": COVERED,
            },
            "hard_steps": {**asdict(self.runs), "clustering": self.runs.clustering},
            "costs": {
                "always": self.costs.always,
                "parts": self.costs.part_shares(),
                "machine": None if self.ceilings is None else self.ceilings.machine,
                "at_rates": [
                    {**asdict(saving), "error_covered": float(self.foreseen(np.array(saving.rate)))}
                    for saving in self.savings
                ],
            },
        }


def assess(
    plan: Plan,
    dataset: PreparedDataset,
    data: Path,
    on_progress: OnProgress,
    ceilings: Ceilings | None = None,
) -> Assessment:
    """Assess a prepared log for the plan's candidate.

    Parameters
    ----------
    plan : Plan
    dataset : PreparedDataset
        Of this plan; train and validation rows are read, judged ones are not.
    data : Path
        Folder that relative paths of the plan start from.
    on_progress : OnProgress
    ceilings : Ceilings or None
        Of the machine to estimate times for.

    Raises
    ------
    PlanError
        When the candidate is no model with sparse activation, or the log has no numeric channel.
    """
    if not dataset.card.numeric:
        raise PlanError(
            "log.numeric: names no channel, and difficulty is measured by forecasting numbers; a "
            "log of event ids alone cannot be assessed"
        )
    arms = build_arms(plan, data)
    found: dict[str, ArchitectureConfig] = {
        role: arm.config(dataset.card) for role, arm in arms.items() if isinstance(arm, NeuralArm)
    }
    candidate, incumbent = found.get("candidate"), found.get("incumbent")
    if not isinstance(candidate, ModelConfig):
        raise PlanError(
            f"arms.candidate.kind: {plan.arms.candidate.kind!r} does not route, so nothing "
            "could be skipped; name a candidate of kind 'sma'"
        )
    costs = CostsAtRates(candidate, incumbent, plan.replay.chunk_rows, ceilings)
    difficulty = measure_difficulty(dataset, on_progress)
    hindsight = Coverage(difficulty.error, difficulty.error)
    foreseen = Coverage(difficulty.error, difficulty.foreseen)
    runs = hard_runs(difficulty.error, difficulty.run)
    return Assessment(
        plan=plan,
        dataset=dataset,
        difficulty=difficulty,
        hindsight=hindsight,
        foreseen=foreseen,
        runs=runs,
        costs=costs,
        ceilings=ceilings,
        answer=answer(
            foreseen,
            hindsight,
            runs,
            costs,
            explained=difficulty.explained,
            rows_read=difficulty.rows_read,
            rows=difficulty.held_out_rows,
        ),
    )
