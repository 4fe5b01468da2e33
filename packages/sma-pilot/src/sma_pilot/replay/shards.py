"""A shard of the offline scenario: some batches of one arm, scored wherever a worker runs.

A walk of the rows goes batch by batch (`batches_of`), and no batch knows of another: that is what
shards are made of. Where a batch is scored, and beside which others, changes no number, since the
rows that go through one forward together stay together.

A batch appears in ``shards/<arm>/`` whole or not at all, and what is there is not scored again.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from sma_core.dataset import PreparedDataset
from sma_core.threads import compute_threads
from sma_pilot.arms.base import Arm, Scorer
from sma_pilot.errors import RunError
from sma_pilot.judge.events import nanoseconds
from sma_pilot.plan import Plan
from sma_pilot.progress import no_progress
from sma_pilot.replay.card import read_json
from sma_pilot.replay.clock import wall_clock
from sma_pilot.replay.environment import environment
from sma_pilot.replay.failure import scoring_failed
from sma_pilot.replay.recorder import Recorder
from sma_pilot.replay.served import serving
from sma_pilot.replay.timeline import Lane, Timeline, Window, batches_of
from sma_pilot.run_folder import write_json

SHARDS = "shards"
BATCH_CARD = "batch.json"
# What decides the last bits of a score.
_ALIKE = ("cpu", "gpu", "python", "torch", "numpy", "polars")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What a worker needs to score some batches of one arm.

    Parameters
    ----------
    plan : Plan
    arms : dict of str to Arm
        By role.
    arm : str
        Name in the measurements.
    role : str
        The arm of the plan that runs under this name.
    dataset, models, folder : Path
        Prepared data set, fitted models and replay folder, the same for every worker.
    window : Window or None
        See `replay`.
    begun : dict
        Contents of the replay's ``begun.json``.
    batches : tuple of int
        Places in `batches_of` all rows.
    """

    plan: Plan
    arms: Mapping[str, Arm]
    arm: str
    role: str
    dataset: Path
    models: Path
    folder: Path
    window: Window | None
    begun: Mapping[str, Any]
    batches: tuple[int, ...] = ()

    @property
    def place(self) -> Path:
        """Where the batches of this arm appear."""
        return self.folder / SHARDS / self.arm

    @property
    def keeps_routing(self) -> bool:
        """Whether routing decisions are kept, too."""
        return self.arm == "candidate"

    def batch(self, number: int) -> Path:
        """Return the folder of a batch."""
        return self.place / f"{number:06d}"

    def finished(self) -> set[int]:
        """Return the batches that are there."""
        if not self.place.is_dir():
            return set()
        return {int(path.name) for path in self.place.iterdir() if path.name.isdigit()}


def score_shard(job: ShardJob) -> None:
    """Score the batches of a shard that are not there yet; called where a worker runs.

    Raises
    ------
    RunError
        A batch cannot be scored, the worker does not see the replay's folder, or it is of another
        kind than the machine that asked.
    """
    _check_worker(job)
    plan, dataset = job.plan, PreparedDataset.open(job.dataset)
    timeline = Timeline(dataset, nanoseconds(plan.log.max_gap), job.window)
    batches = batches_of(timeline.lanes)

    def bare(role: str) -> Scorer:
        return job.arms[role].open(job.models / role)

    with compute_threads(plan.replay.threads), torch.inference_mode():
        scorer = serving(plan, timeline, bare, wall_clock, no_progress)(job.role)
        for number in job.batches:
            if not job.batch(number).exists():
                _score_batch(job, scorer, timeline, number, batches[number])


def _check_worker(job: ShardJob) -> None:
    try:
        begun = read_json(job.folder / "begun.json")
    except RunError:
        begun = None
    if begun != job.begun:
        raise RunError(
            f"{job.folder}: a worker does not find this replay there; --out must be a folder on a "
            "file system that all nodes mount at the same path"
        )
    settings = job.plan.replay
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RunError("replay.device: 'cuda' is asked for and a worker has no CUDA device")
    own, asking = environment(settings.threads, settings.device), job.begun["environment"]
    for part in _ALIKE:
        if own[part] != asking[part]:
            raise RunError(
                f"a worker has {part} {own[part]!r}, the machine that replays {asking[part]!r}: "
                "numbers are the same on machines of one kind with the same software alone; "
                "replay on a machine of the workers' kind"
            )


def _score_batch(
    job: ShardJob, scorer: Scorer, timeline: Timeline, number: int, batch: tuple[Lane, ...]
) -> None:
    final = job.batch(number)
    # A worker that was given up may live on and score the same batch: each has a place of its own.
    own = final.with_name(f".{final.name}-{uuid4().hex}")
    chunk_rows = job.plan.replay.chunk_rows
    try:
        with Recorder(
            job.arm, scorer.submodules, timeline.entities, own, routing=job.keeps_routing
        ) as recorder:
            for chunk in timeline.walk_batch(scorer, batch, chunk_rows):
                try:
                    scores = scorer.score(chunk.inputs, chunk.state)
                except Exception as error:
                    raise scoring_failed(job.arm, scorer, timeline, chunk, error) from error
                recorder.add(chunk, scores)
        ran = recorder.activation
        write_json(own / BATCH_CARD, {"rows": ran.rows, "runs": ran.runs})
        try:
            own.rename(final)
        except OSError:
            if not final.exists():
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
