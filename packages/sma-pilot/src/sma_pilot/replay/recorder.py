"""What an offline leg leaves: scores by row, and of the arm that routes its decisions."""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from sma_pilot.arms.base import Scores
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.timeline import Chunk, Timeline

_SLICES = pl.Enum(["validation", "judged"])


class Recorder:
    """Writes scores and routes as they come, and counts which sub-modules ran on judged rows."""

    def __init__(
        self,
        arm: str,
        submodules: tuple[str, ...],
        timeline: Timeline,
        folder: Path,
        routing: bool,
        open_files: ExitStack,
    ) -> None:
        self._arm = arm
        self._submodules = submodules
        self._names = timeline.entities
        self._entity = pl.Enum(timeline.entities)
        self._scores = open_files.enter_context(PartWriter(folder / "scores", arm))
        self._routes: PartWriter | None = None
        if routing:
            self._routes = open_files.enter_context(PartWriter(folder / "routing", arm))
        self._ran: NDArray[np.int64] | None = None
        self._judged_rows = 0

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
            self._scores.add(
                pl.DataFrame(
                    {
                        "time": rows.time.numpy(),
                        "label": rows.label.numpy(),
                        "score": scores.score[i].numpy(),
                        "judged": judged,
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
                )
            )
            if active is None or confidence is None or not judged.any():
                continue
            ran, sure = active[i, first_judged:], confidence[i, first_judged:]
            self._judged_rows += len(ran)
            self._ran = ran.sum(0) + (0 if self._ran is None else self._ran)
            if self._routes is not None:
                time = rows.time.numpy()[first_judged:]
                self._routes.add(self._routing(entity, time, ran, sure))

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

    def activation(self) -> dict[str, Any]:
        """Share of judged steps that ran the sub-modules: over all, and each by itself."""
        if self._ran is None:
            return {"activation_rate": None, "submodule_rates": {}}
        rates = self._ran / self._judged_rows
        layers = range(rates.shape[0])
        names = [f"layer {layer} {name}" for layer, name in product(layers, self._submodules)]
        return {
            "activation_rate": float(rates.mean()),
            "submodule_rates": dict(zip(names, rates.ravel().tolist(), strict=True)),
        }


def _by_row(layers: list[torch.Tensor]) -> NDArray[Any] | None:
    """Put the layers' [B, T, M] side by side as [B, T, L, M] on the host."""
    return torch.stack(layers, 2).cpu().numpy() if layers else None
