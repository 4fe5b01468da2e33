"""A study made small, to see that its whole path works before hours of a cluster go into it."""

import json
from typing import Any

from sma_eval.scheduler import NoScheduler
from sma_eval.search import GridSearch
from sma_eval.study import Study

_STEPS, _EVERY = 4, 2
_TRAINING = {
    "max_steps": _STEPS,
    "evaluate_every": _EVERY,
    "evaluate_batches": 1,
    "checkpoint_every": _EVERY,
    "warmup_steps": 1,
}
_SCHEDULER = {"grace": _EVERY, "interval": _EVERY}  # where something is measured
_SEQUENCES = {"train_sequences": 64, "validation_sequences": 16, "test_sequences": 16}
_SAMPLES = 2


def smoke_test(study: Study) -> Study:
    """Return a study of four optimiser steps a trial, with every arm once.

    Model, task, search, scheduler and resources are those of `study`, so that what would fail there
    fails here: a pool that does not fit in memory, a data set that a node does not see, a GPU that
    is not there. Data that is generated is little, one seed stays, and of a grid of nuisance values
    the first. Its figures mean nothing, and its name says so.
    """
    content: dict[str, Any] = study.model_dump(mode="json")
    content["name"] = f"{study.name[:58]}-smoke"
    content["description"] = "A smoke test: four steps a trial. Its figures mean nothing."
    content["seeds"] = content["seeds"][:1]
    nuisance = content["nuisance"]
    if isinstance(study.search, GridSearch):
        # With one choice a scheduler has nothing to compare.
        kept = 1 if isinstance(study.scheduler, NoScheduler) else 2
        for name, values in nuisance.items():
            nuisance[name] = values[:kept]
            kept = 1 if len(nuisance[name]) > 1 else kept
    else:
        content["search"]["samples"] = min(study.search.samples, _SAMPLES)
    short = {name: value for name, value in _TRAINING.items() if name not in nuisance}
    content["training"] |= short
    scheduler, task = content["scheduler"], content["task"]
    scheduler |= {name: step for name, step in _SCHEDULER.items() if name in scheduler}
    task |= {name: min(task[name], most) for name, most in _SEQUENCES.items() if name in task}
    return Study.model_validate_json(json.dumps(content))
