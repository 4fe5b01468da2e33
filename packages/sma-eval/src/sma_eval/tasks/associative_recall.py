"""Multi-query associative recall (MQAR): read pairs, then answer each key with its value."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Int32
from pydantic import Field, model_validator
from torch import Tensor

from sma_core.config import HeadKind

from .generated import GeneratedTask, Sample, Sequences, chunks

# Word 0 fills the steps between queries when `random_filler` is off; keys and values follow.
BLANK = 0


class AssociativeRecall(GeneratedTask, frozen=True):
    """Name the value that stood beside a key, for several keys, at gaps that follow a power law.

    After "multi-query associative recall" of Arora et al. (Zoology), arXiv 2312.04927, section 4
    and the program that it was published with. Of V words, 0 is blank, those below V / 2 are keys
    and the others values. A sequence begins with its pairs, key and value in turn; then each key
    stands once more, and there the value is the target. Only those steps count.
    """

    version: ClassVar[int] = 1
    head: ClassVar[HeadKind] = "step_classification"

    kind: Literal["mqar"]
    length: Annotated[int, Field(ge=4, le=65_536, multiple_of=2)] = 64
    """Steps of a sequence."""
    pairs: Annotated[int, Field(ge=1, le=16_384)] = 4
    """Pairs to remember, and queries."""
    vocabulary: Annotated[int, Field(ge=4, le=65_536, multiple_of=2)] = 8192
    """Words, blank, keys and values together. Half are values: chance accuracy is two over it."""
    power: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Exponent a: the n-th place of a query is drawn in proportion to n ** (a - 1). 1: evenly."""
    random_filler: bool = True
    """Words drawn from the whole vocabulary between the queries; false: blank ones."""
    train_sequences: Sequences = 100_000
    validation_sequences: Sequences = 3000
    test_sequences: Sequences = 3000

    @model_validator(mode="after")
    def _pairs_fit(self) -> Self:
        if 4 * self.pairs > self.length:
            raise ValueError(
                f"{self.pairs} pairs and as many queries need {4 * self.pairs} steps, and length "
                f"is {self.length}"
            )
        if self.pairs > (keys := self.vocabulary // 2 - 1):
            raise ValueError(
                f"{self.pairs} pairs need as many keys, and vocabulary {self.vocabulary} has {keys}"
            )
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """Blank, the keys and the values."""
        return ("blank", *(f"key {i}" for i in range(1, self._first_value)), *self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The values."""
        return tuple(f"value {i}" for i in range(self.vocabulary - self._first_value))

    @property
    def steps(self) -> int:
        """Steps of every sequence."""
        return self.length

    @property
    def _first_value(self) -> int:
        return self.vocabulary // 2

    def draw(self, counts: Sequence[int]) -> Iterator[Sample]:
        """Draw the sequences of splits of these sizes, one split after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        for count in counts:
            for size in chunks(count, self.length + self.vocabulary):
                yield from zip(*associative_recall(self, size, generator), strict=True)


def associative_recall(
    task: AssociativeRecall, sequences: int, generator: torch.Generator
) -> tuple[Int32[Tensor, "S T"], Int32[Tensor, "S T"]]:
    """Draw sequences of multi-query associative recall.

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
    words : int32 [sequences, length]
        Index into (blank, key 1, key 2, ..., value 0, value 1, ...).
    target : int32 [sequences, length]
        Value to name at the queries, counted from value 0; -1 elsewhere.
    """
    first_value = task.vocabulary // 2
    # Queries stand at every other step after the pairs, nearer ones more often.
    places = torch.arange(1, (task.length - 2 * task.pairs) // 2 + 1, dtype=torch.float64)
    weights = places ** (task.power - 1.0)
    uniform = [
        torch.rand(sequences, among, generator=generator, dtype=torch.float64)
        for among in (first_value - 1, task.vocabulary - first_value, len(places))
    ]
    keys = 1 + uniform[0].topk(task.pairs).indices
    values = uniform[1].topk(task.pairs).indices
    # The first of exponential clocks, each as fast as its weight: a draw without replacement.
    clocks = uniform[2].log() / weights
    queries = 2 * task.pairs + 2 * clocks.topk(task.pairs).indices

    shape = (sequences, task.length)
    if task.random_filler:
        words = torch.randint(task.vocabulary, shape, generator=generator, dtype=torch.int32)
    else:
        words = torch.full(shape, BLANK, dtype=torch.int32)
    words[:, 0 : 2 * task.pairs : 2] = keys.int()
    words[:, 1 : 2 * task.pairs : 2] = (first_value + values).int()
    words.scatter_(1, queries, keys.int())
    target = torch.full_like(words, -1)
    target.scatter_(1, queries, values.int())
    return words, target
