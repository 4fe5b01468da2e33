"""Tasks whose data are drawn here: the same parameters give the same bytes, kept in a cache.

A data set's folder is named by a hash of its parameters and of its generator's version. It appears
whole or not at all, whoever else wants it at the same time and whenever its writer is killed.
"""

import fcntl
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from jaxtyping import Int32
from pydantic import Field
from torch import Tensor

from sma_core.config import HeadConfig, HeadKind, InputConfig
from sma_core.dataset import CategoricalChannel, DatasetWriter, PreparedDataset
from sma_core.files import digest_of
from sma_eval.section import Section, Seed

Sequences = Annotated[int, Field(ge=1, le=1_000_000)]

Sample = tuple[Int32[Tensor, " T"], Int32[Tensor, " T"] | int]
"""One sequence: its words, and the class of each step (-1 = ignore) or of the whole."""

# Numbers drawn at a time, so that memory does not grow with the number of sequences.
_CHUNK = 2**22


class GeneratedTask(Section, frozen=True):
    """A task over one channel of words, drawn from a seed.

    A subclass has fields, `words`, `classes`, `steps` and `draw`.
    """

    version: ClassVar[int]
    """Part of the cache's key: raise it when the output for any parameters changes."""
    head: ClassVar[HeadKind]
    """What is learned."""

    kind: str
    train_sequences: Sequences = 2048
    validation_sequences: Sequences = 256
    test_sequences: Sequences = 512
    seed: Seed = 0
    """Of the data; the seeds of the trials do not change it."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """The vocabulary of the only channel."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the answers."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the longest sequence; a window that cuts one would cut off its question."""

    @abstractmethod
    def draw(self, counts: Sequence[int]) -> Iterator[Sample]:
        """Draw the sequences of splits of these sizes, one split after the other."""

    @property
    def test(self) -> str:
        """Split that the table speaks of."""
        return "test"

    def describe(self, data: Path) -> tuple[InputConfig, HeadConfig]:
        """Say what the data holds and what is learned from it, without generating any."""
        inputs = InputConfig(categorical=(len(self.words),))
        return inputs, HeadConfig(kind=self.head, outputs=len(self.classes))

    def prepare(self, *, data: Path, cache: Path) -> PreparedDataset:
        """Open the data set, generating it first where it is not in `cache` yet.

        Parameters
        ----------
        data
            Unused: it is not found there.
        cache
            Folder of generated data sets. Several processes may share it: the first generates, the
            others wait for it.

        Raises
        ------
        FieldError
            When the parameters leave nothing to draw.
        DatasetError
            When the cached data set is damaged.
        """
        parameters = {"generator": self.version, **self.model_dump(mode="json")}
        folder = cache / f"{self.kind}-{digest_of(parameters)[:12]}"
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with _only_writer(folder):
                if not folder.exists():  # nobody made it while this process waited
                    self._write(folder, parameters)
        return PreparedDataset.open(folder, verify=True)

    def _write(self, folder: Path, parameters: dict[str, object]) -> None:
        splits = {
            "train": self.train_sequences,
            "validation": self.validation_sequences,
            "test": self.test_sequences,
        }
        with DatasetWriter(
            folder,
            name=self.kind,
            categorical=[CategoricalChannel(name="word", vocabulary=self.words)],
            classes=self.classes,
            provenance={"made_by": "sma_eval.tasks", "parameters": parameters},
        ) as writer:
            samples = self.draw(tuple(splits.values()))
            for split, count in splits.items():
                for words, answer in islice(samples, count):
                    whole = isinstance(answer, int)
                    writer.append(
                        split,
                        entity=0,
                        time=torch.arange(len(words)),
                        categorical=words[:, None],
                        target=None if whole else answer,
                        sequence_target=answer if whole else None,
                    )


def chunks(count: int, numbers: int) -> Iterator[int]:
    """Split `count` sequences, of which each takes `numbers` random numbers, into sizes to draw."""
    size = max(1, _CHUNK // numbers)
    for start in range(0, count, size):
        yield min(size, count - start)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process writes `folder`, and clear away what a killed one left of it."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        # The kernel drops the lock with the process, however it dies.
        fcntl.flock(file, fcntl.LOCK_EX)
        for abandoned in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(abandoned)
        yield
