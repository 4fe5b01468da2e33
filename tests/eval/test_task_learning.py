"""A small model learns a tiny variant of every generated task far above chance."""

from pathlib import Path
from typing import get_args

import pytest
from tests.eval.studies import study_text

from sma_eval.experiment import list_trials
from sma_eval.study import parse_study
from sma_eval.tasks import TASKS, GeneratedTask
from sma_eval.trial import run_trial

# Fields, optimiser steps, and an accuracy that neither chance nor the commonest answer reaches.
TINY = {
    "selective_copying": ("length = 5\ntokens = 2\nvocabulary = 3", 60, 0.7),
    "mqar": ("length = 8\npairs = 2\nvocabulary = 6\nrandom_filler = false", 100, 0.7),
    "listops": ("max_depth = 2\nmax_arguments = 3\nmin_length = 1\nmax_length = 6", 60, 0.35),
}
SPLITS = "train_sequences = 1024\nvalidation_sequences = 64\ntest_sequences = 256"


def test_every_generated_task_is_tried_here() -> None:
    kinds = {
        get_args(task.model_fields["kind"].annotation)[0]
        for task in TASKS
        if issubclass(task, GeneratedTask)
    }
    assert kinds == set(TINY)


@pytest.mark.parametrize("kind", TINY)
def test_a_tiny_variant_is_learned(kind: str, tmp_path: Path) -> None:
    fields, steps, expected = TINY[kind]
    text = study_text(
        kind=f'kind = "{kind}"\n{fields}\n{SPLITS}',
        **dict.fromkeys(
            (
                *("length", "tokens", "vocabulary"),
                *("train_sequences", "validation_sequences", "test_sequences"),
            ),
            "",
        ),
        seeds="seeds = [0]",
        width="width = 16",
        max_steps=f"max_steps = {steps}\nlearning_rate = 3e-2",
        warmup_steps="warmup_steps = 5",
        batch_size="batch_size = 32",
        evaluate_every=f"evaluate_every = {steps}",
        checkpoint_every=f"checkpoint_every = {steps}",
    )
    study = parse_study(text, "study.toml")
    dataset = study.task.prepare(data=tmp_path, cache=tmp_path)
    trial, _ = list_trials(study, tmp_path)
    result = run_trial(
        trial,
        dataset.folder,
        tmp_path / "trial",
        test_split="test",
        provenance={},
        report=lambda report, folder: None,
    )
    assert result is not None
    assert result.test["accuracy"] > expected
