"""The offline scenario: all rows as fast as they go, for scores and for throughput."""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from sma_pilot.arms.base import Scorer, Scores
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.timeline import Chunk, Lane, Timeline

_SLICES = pl.Enum(["validation", "judged"])


def run_offline(
    arm: str,
    scorer: Scorer,
    timeline: Timeline,
    folder: Path,
    *,
    chunk_rows: int,
    routing: bool,
    clock: Clock,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Score every row of validation and judged time.

    The time that counts is that of `Scorer.score` alone: reading rows and writing scores cost
    every arm the same and are no part of it.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    scorer : Scorer
    timeline : Timeline
    folder : Path
        The replay folder.
    chunk_rows : int
        Most rows of one sequence in one forward.
    routing : bool
        Whether each routing decision on judged rows is kept, too.
    clock : Clock
    on_progress : OnProgress

    Returns
    -------
    dict
        Figures of the leg, ready for JSON.
    """
    lanes = [Lane(stretch, stretch.rows) for stretch in timeline.stretches]
    stage = f"replay {arm}"
    elapsed = done = 0
    with ExitStack() as open_files, torch.inference_mode():
        recorder = _Recorder(arm, scorer.submodules, timeline, folder, routing, open_files)
        # The first forward picks kernels and grows the allocator's pools: it is not timed.
        for chunk in timeline.walk(scorer, lanes, chunk_rows):
            scorer.score(chunk.inputs, chunk.state)
            break
        for chunk in timeline.walk(scorer, lanes, chunk_rows):
            on_progress(stage, done, timeline.rows)
            begin = clock()
            scores = scorer.score(chunk.inputs, chunk.state)
            elapsed += clock() - begin
            recorder.add(chunk, scores)
            done += len(chunk.lanes) * (chunk.end - chunk.begin)
    on_progress(stage, done, timeline.rows)
    seconds = elapsed / 1e9
    return {
        "rows": done,
        "seconds": seconds,
        "rows_per_second": done / seconds if seconds > 0 else None,
        **recorder.activation(),
    }


class _Recorder:
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
