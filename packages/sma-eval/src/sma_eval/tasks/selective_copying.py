"""Selective copying: remember a few tokens among noise, and name them in order."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Int32
from pydantic import Field, model_validator
from torch import Tensor

from sma_core.config import HeadKind

from .generated import GeneratedTask, Sample, chunks

# The first words of the vocabulary; the tokens follow.
NOISE, RECALL = 0, 1
_WORDS = ("noise", "recall")


class SelectiveCopying(GeneratedTask, frozen=True):
    """Copy scattered tokens in order, past noise: needs memory that chooses what to keep.

    After "selective copying" of Gu & Dao, arXiv 2312.00752, section 3.1, whose tokens are scattered
    as those of Jing et al., arXiv 1706.02761. Theirs has ``length`` 4096 and 16 tokens.
    """

    version: ClassVar[int] = 2
    head: ClassVar[HeadKind] = "step_classification"

    kind: Literal["selective_copying"]
    length: Annotated[int, Field(ge=1, le=65_536)] = 48
    """Steps over which the tokens are scattered."""
    tokens: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Tokens to remember, and steps at the end that ask for them."""
    vocabulary: Annotated[int, Field(ge=2, le=4096)] = 8
    """Number of different tokens; chance accuracy is one over it."""

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        if self.tokens > self.length:
            raise ValueError(f"{self.tokens} tokens do not fit into length {self.length}")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """Noise, the word that asks, and the tokens."""
        return (*_WORDS, *self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The tokens."""
        return tuple(f"token {i}" for i in range(self.vocabulary))

    @property
    def steps(self) -> int:
        """Steps of one sequence: the part to read and the part that answers."""
        return self.length + self.tokens

    def draw(self, counts: Sequence[int]) -> Iterator[Sample]:
        """Draw the sequences of splits of these sizes, one split after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        for count in counts:
            for size in chunks(count, self.steps):
                yield from zip(*selective_copying(self, size, generator), strict=True)


def selective_copying(
    task: SelectiveCopying, sequences: int, generator: torch.Generator
) -> tuple[Int32[Tensor, "S T"], Int32[Tensor, "S T"]]:
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
