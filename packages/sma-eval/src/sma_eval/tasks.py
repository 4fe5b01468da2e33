"""What models learn in a study: prepared data sets, generated here or found in the data folder."""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.config import HeadConfig, InputConfig
from sma_core.dataset import CategoricalChannel, DatasetCard, DatasetWriter, PreparedDataset
from sma_core.files import digest_of
from sma_eval.errors import FieldError
from sma_eval.study import Prepared, SelectiveCopying, Task

# The first words of the vocabulary of selective copying; the tokens follow.
NOISE, RECALL = 0, 1
_WORDS = ("noise", "recall")
# Part of a generated data set's cache key: raise it when a generator's output changes.
_GENERATOR_VERSION = 1


def describe_task(task: Task, data: Path) -> tuple[InputConfig, HeadConfig]:
    """Say what a task's data holds and what is learned from it, without generating any.

    Parameters
    ----------
    task
        The task.
    data
        Folder that prepared data sets are relative to.

    Raises
    ------
    FieldError
        When a prepared data set has not what the task asks for.
    DatasetError
        When it is absent or damaged.
    """
    if isinstance(task, SelectiveCopying):
        inputs = InputConfig(categorical=(len(_WORDS) + task.vocabulary,))
        return inputs, HeadConfig(kind="step_classification", outputs=task.vocabulary)
    dataset = PreparedDataset.open(data / task.dataset)
    _require_splits(task, dataset)
    card = dataset.card
    inputs = InputConfig(
        numeric=len(card.numeric),
        categorical=tuple(len(channel.vocabulary) for channel in card.categorical),
    )
    outputs = len(card.numeric) if task.head == "forecast" else len(card.classes)
    if not outputs:
        lacking = "numeric channels" if task.head == "forecast" else "classes"
        raise FieldError(f"task.head: data set {task.dataset!r} has no {lacking} for {task.head}")
    return inputs, HeadConfig(kind=task.head, outputs=outputs)


def prepare_task(task: Task, *, data: Path, cache: Path) -> PreparedDataset:
    """Open the task's data set, generating it first where it is not in `cache` yet.

    Parameters
    ----------
    task
        The task.
    data
        Folder that prepared data sets are relative to.
    cache
        Folder of generated data sets, each named by a hash of its parameters.

    Raises
    ------
    DatasetError
        When the data set is absent or damaged.
    """
    if isinstance(task, Prepared):
        return PreparedDataset.open(data / task.dataset)
    parameters = {"generator": _GENERATOR_VERSION, **task.model_dump(mode="json")}
    folder = cache / f"{task.kind}-{digest_of(parameters)[:12]}"
    if not folder.exists():
        _write_selective_copying(task, folder, parameters)
    return PreparedDataset.open(folder, verify=True)


def selective_copying(
    task: SelectiveCopying, sequences: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw sequences of selective copying.

    The first `length` steps are noise with the tokens at random places; the last `tokens` steps
    ask for them in the order in which they came. Nothing else decides the target, so that a model
    with perfect memory makes no error.

    Parameters
    ----------
    task
        Its sizes.
    sequences
        How many.
    generator
        Fixes the draw.

    Returns
    -------
    words : int32 [sequences, steps]
        Index into (noise, recall, token 0, token 1, ...).
    target : int32 [sequences, steps]
        Token to name at the recall steps; -1 elsewhere.
    """
    shape = (sequences, task.tokens)
    tokens = torch.randint(task.vocabulary, shape, generator=generator, dtype=torch.int32)
    # The smallest of random keys are a random choice of places.
    keys = torch.rand(sequences, task.length, generator=generator)
    places = keys.argsort(dim=1)[:, : task.tokens].sort(dim=1).values
    words = torch.full((sequences, task.steps), NOISE, dtype=torch.int32)
    words.scatter_(1, places, tokens + len(_WORDS))
    words[:, task.length :] = RECALL
    target = torch.full_like(words, -1)
    target[:, task.length :] = tokens
    return words, target


def _write_selective_copying(
    task: SelectiveCopying, folder: Path, parameters: dict[str, object]
) -> DatasetCard:
    names = tuple(f"token {i}" for i in range(task.vocabulary))
    generator = torch.Generator().manual_seed(task.seed)
    time = torch.arange(task.steps)
    with DatasetWriter(
        folder,
        name=task.kind,
        categorical=[CategoricalChannel(name="word", vocabulary=(*_WORDS, *names))],
        classes=names,
        provenance={"made_by": "sma_eval.tasks", "parameters": parameters},
    ) as writer:
        for split, sequences in (
            ("train", task.train_sequences),
            ("validation", task.validation_sequences),
            ("test", task.test_sequences),
        ):
            words, target = selective_copying(task, sequences, generator)
            for row, answer in zip(words, target, strict=True):
                writer.append(split, entity=0, time=time, categorical=row[:, None], target=answer)
    return writer.close()


def _require_splits(task: Prepared, dataset: PreparedDataset) -> None:
    wanted = {"train": "task.dataset", "validation": "task.dataset"}
    if task.test is not None:
        wanted[task.test] = "task.test"
    for split, field in wanted.items():
        if split not in dataset.card.splits:
            known = ", ".join(dataset.card.splits)
            raise FieldError(f"{field}: {task.dataset!r} has no split {split!r}; it has {known}")
