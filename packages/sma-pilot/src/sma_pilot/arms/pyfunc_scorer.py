"""How a pyfunc model is asked, and what of its answers can be taken for scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sma_core.dataset import DatasetCard
from sma_pilot.arms.estimator_scorer import log_units
from sma_pilot.arms.native_threads import hold_threads
from sma_pilot.arms.row_scorer import RowScorer, tells_something
from sma_pilot.errors import RunError
from sma_pilot.plan import PyfuncPlan, Task


class AnswerError(RunError):
    """A model raised an exception, or its answer is no score of each row."""


class PyfuncScorer(RowScorer):
    """Scores rows by what a pyfunc model says of them.

    Parameters
    ----------
    model
        With ``predict``.
    arm : PyfuncPlan
    task : Task
    card : DatasetCard
        Names, scaling and vocabularies of the channels.
    threads : int
        That its native code may use.
    """

    def __init__(
        self, model: Any, arm: PyfuncPlan, task: Task, card: DatasetCard, *, threads: int
    ) -> None:
        smoothing = task.smoothing if task.horizon is None else 1
        super().__init__(len(card.numeric), window=arm.window, smoothing=smoothing)
        self._model = model
        self._arm = arm
        self._task = task
        self._names = [channel.name for channel in card.numeric]
        self._categories = [
            (channel.name, np.array(channel.vocabulary, dtype=object))
            for channel in card.categorical
        ]
        self._units = log_units(card) if arm.values == "log" else None
        hold_threads(self, threads)

    @property
    def weight_bytes(self) -> int | None:
        """As the plan declares it: nobody can look into another one's model."""
        return self._arm.weight_bytes

    def _of_windows(self, windows: Tensor, categorical: Tensor | None) -> Tensor:
        known = tells_something(windows, categorical)
        score = torch.full(known.shape, torch.nan)
        if known.any():
            chosen = None if categorical is None else categorical[known]
            score[known] = torch.from_numpy(self.ask(windows[known], chosen)).float()
        return score

    def ask(self, windows: Tensor, categorical: Tensor | None) -> NDArray[np.float64]:
        """Return the scores [N] of windows [N, W, C], with categories [N, K] of the present rows.

        Raises
        ------
        AnswerError
            The model raises an exception, or its answer is not a finite number for each row.
        """
        values = windows.double()
        if self._units is not None:
            center, scale = self._units
            values = values * scale + center
        rows = values.float().numpy() if self._arm.window > 1 else self._table(values, categorical)
        try:
            answer = self._model.predict(rows)
        except Exception as error:
            raise AnswerError(
                f"the model raised {type(error).__name__} on {len(windows)} rows: {error}"
            ) from error
        score = self._numbers(answer, len(windows))
        if not self._arm.negate:
            return score
        return -score if self._task.horizon is None else 1.0 - score

    def _table(self, values: Tensor, categorical: Tensor | None) -> Any:
        """Lay rows out as a pandas table: a column a channel, named as the log names it."""
        import pandas as pd

        columns: dict[str, Any] = dict(zip(self._names, values[:, -1].T.numpy(), strict=True))
        if categorical is not None:
            codes = zip(self._categories, categorical.T.numpy(), strict=True)
            columns |= {name: words[code] for (name, words), code in codes}
        return pd.DataFrame(columns)

    def _numbers(self, answer: Any, rows: int) -> NDArray[np.float64]:
        """Read an answer as one finite number for each row."""
        found = np.asarray(self._column(answer))
        if found.shape not in ((rows,), (rows, 1)):
            raise AnswerError(
                f"the model answers {rows} rows with the shape {found.shape}; it takes one number "
                f"for each row, so ({rows},)"
            )
        if not (np.issubdtype(found.dtype, np.number) or found.dtype == bool) or np.iscomplexobj(
            found
        ):
            raise AnswerError(
                f"the model answers with {found.dtype} values, and a score is a number"
            )
        score = found.reshape(rows).astype(np.float64)
        if not np.isfinite(score).all():
            row = int(np.argmin(np.isfinite(score)))
            raise AnswerError(
                f"the model answers row {row} of {rows} with {score[row]}, which is no score"
            )
        if self._task.horizon is not None and not ((score >= 0) & (score <= 1)).all():
            raise AnswerError(
                f"the model answers with {score.min():g} to {score.max():g}; a score of task "
                f"{self._task.kind!r} lies in 0 to 1"
            )
        return score

    def _column(self, answer: Any) -> Any:
        """Return the column that the plan names, of an answer that has columns."""
        named = hasattr(answer, "columns") or isinstance(answer, Mapping)
        if not named:
            if self._arm.output is not None:
                raise AnswerError(
                    f"`output` names the column {self._arm.output!r}, and the model answers with a "
                    f"{type(answer).__name__} that has no named columns"
                )
            return answer
        names = [str(name) for name in (answer if isinstance(answer, Mapping) else answer.columns)]
        if self._arm.output is None and len(names) == 1:
            return answer[next(iter(answer))]
        if self._arm.output not in names:
            raise AnswerError(
                f"the model answers with the columns {', '.join(names)}; name the one that holds "
                "the score in `output`"
            )
        return answer[self._arm.output]
