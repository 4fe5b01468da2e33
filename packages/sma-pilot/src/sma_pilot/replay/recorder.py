"""What the offline scenario keeps: scores, routing decisions, and how often each part ran."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from sma_pilot.arms.base import Scores
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.timeline import Chunk

SCORES, ROUTING = "scores", "routing"
"""Folders of the parts."""
_SLICES = pl.Enum(["validation", "judged"])


@dataclass
class Activation:
    """How often each sub-module ran on judged rows.

    These are counts, so that those of parts of a log add up to exactly those of all of it.

    Parameters
    ----------
    rows : int
        Judged rows.
    runs : Counter of str
        On how many of them each sub-module ran, by name, such as ``layer 0 gated_attention``.
    """

    rows: int = 0
    runs: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Activation") -> None:
        """Take the counts of another part of the log."""
        self.rows += other.rows
        self.runs.update(other.runs)

    def figures(self) -> dict[str, Any]:
        """Return the share of rows that ran the sub-modules: over all, and each by itself."""
        if not self.rows:
            return {"activation_rate": None, "submodule_rates": {}}
        rates = np.array(list(self.runs.values())) / self.rows
        return {
            "activation_rate": float(rates.mean()),
            "submodule_rates": dict(zip(self.runs, rates.tolist(), strict=True)),
        }


class Recorder:
    """Writes scores and routes as they come, and counts which sub-modules ran on judged rows.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    submodules : tuple of str
        Names of those that each layer routes to; see `Scorer.submodules`.
    entities : tuple of str
        Names of the entities that stretches index.
    folder : Path
        The parts go to folders ``scores`` and ``routing`` in it.
    routing : bool
        Whether each routing decision on judged rows is kept, too.

    Attributes
    ----------
    activation : Activation
    """

    def __init__(
        self,
        arm: str,
        submodules: tuple[str, ...],
        entities: tuple[str, ...],
        folder: Path,
        *,
        routing: bool,
    ) -> None:
        self._arm = arm
        self._submodules = submodules
        self._names = entities
        self._entity = pl.Enum(entities)
        self._scores = PartWriter(folder / SCORES, arm)
        self._routes = PartWriter(folder / ROUTING, arm) if routing else None
        self._open = ExitStack()
        self.activation = Activation()

    def __enter__(self) -> Self:
        for writer in (self._scores, self._routes):
            if writer is not None:
                self._open.enter_context(writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, chunk: Chunk, scores: Scores) -> None:
        """Take the scores of a chunk."""
        active = _by_row([decision.active for decision in scores.decisions])
        confidence = _by_row([decision.confidence for decision in scores.decisions])
        for i, (lane, rows) in enumerate(zip(chunk.lanes, chunk.rows, strict=True)):
            entity = self._names[lane.stretch.entity]
            count = len(rows.time)
            validation = min(max(lane.stretch.border - chunk.begin, 0), count)
            first_judged = min(max(lane.stretch.first_judged - chunk.begin, 0), count)
            judged = np.arange(count) >= first_judged
            # Rows between the two only lead to where judging begins.
            counted = judged | (np.arange(count) < validation)
            told = {} if scores.classes is None else _told(scores.classes[i], rows.label)
            self._scores.add(
                pl.DataFrame(
                    {
                        "time": rows.time.numpy(),
                        "label": rows.label.numpy(),
                        "score": scores.score[i].numpy(),
                        "judged": judged,
                        **told,
                    }
                )
                .filter(counted)
                .select(
                    arm=pl.lit(self._arm),
                    slice=pl.when("judged")
                    .then(pl.lit("judged"))
                    .otherwise(pl.lit("validation"))
                    .cast(_SLICES),
                    entity=pl.lit(entity, dtype=self._entity),
                    time="time",
                    label="label",
                    score="score",
                    **{name: name for name in told},
                )
            )
            if active is None or confidence is None or not judged.any():
                continue
            ran, sure = active[i, first_judged:], confidence[i, first_judged:]
            self.activation.add(self._count(ran))
            if self._routes is not None:
                time = rows.time.numpy()[first_judged:]
                self._routes.add(self._routing(entity, time, ran, sure))

    def _count(self, ran: NDArray[np.bool_]) -> Activation:
        """Count over rows of decisions [T, L, M]."""
        rows, layers, _ = ran.shape
        names = [f"layer {n} {name}" for n, name in product(range(layers), self._submodules)]
        counts = ran.sum(0).ravel().tolist()
        return Activation(rows, Counter(dict(zip(names, counts, strict=True))))

    def _routing(
        self,
        entity: str,
        time: NDArray[np.int64],
        active: NDArray[np.bool_],
        confidence: NDArray[np.float32],
    ) -> pl.DataFrame:
        """Rows (time, layer, sub-module) of decisions [T, L, M]."""
        steps, layers, width = active.shape
        layer = np.repeat(np.arange(layers, dtype=np.int16), width)
        place = np.tile(np.arange(width, dtype=np.uint32), layers)
        names = pl.Series(self._submodules, dtype=pl.Enum(self._submodules))
        return pl.DataFrame(
            {
                "time": np.repeat(time, layers * width),
                "layer": np.tile(layer, steps),
                "submodule": names.gather(np.tile(place, steps)),
                "active": active.ravel(),
                "confidence": confidence.ravel(),
            }
        ).select(pl.lit(entity, dtype=self._entity).alias("entity"), pl.all())


def _told(probability: torch.Tensor, label: torch.Tensor) -> dict[str, NDArray[Any]]:
    """Return the class told in each row, and how far its probabilities [T, K] are from the truth.

    The squared error is the row's term of the Brier score over classes; NaN where the label [T] is
    none of them.
    """
    classes = probability.shape[1]
    known = (label >= 0) & (label < classes)
    of_truth = probability.gather(1, torch.where(known, label, 0).long()[:, None])[:, 0]
    error = probability.double().square().sum(1) - 2.0 * of_truth.double() + 1.0
    return {
        "predicted": probability.argmax(1).int().numpy(),
        "squared_error": torch.where(known, error, torch.nan).float().numpy(),
    }


def _by_row(layers: list[torch.Tensor]) -> NDArray[Any] | None:
    """Put the layers' [B, T, M] side by side as [B, T, L, M] on the host."""
    return torch.stack(layers, 2).cpu().numpy() if layers else None
