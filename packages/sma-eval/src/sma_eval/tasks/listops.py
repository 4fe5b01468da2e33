"""ListOps of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM.

The grammar is that of Nangia & Bowman, arXiv 1804.06028, with the numbers of the Long Range Arena,
arXiv 2011.04006, and of the program that it was published with: below the greatest depth a node is
an operator with probability 1/4, each operator as likely as the others, with 2 to `max_arguments`
arguments; any other node is a digit. MED is the median rounded down, SM the sum modulo 10.

Whole sequences are kept when their number of tokens lies strictly between the two bounds, which is
how the published program reads them. Tokens are digits, operators and closing brackets; the
parentheses in its files say the same a second time, and its readers drop them. No sequence is
kept twice, so none is in two splits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field, model_validator

from sma_core.config import HeadKind
from sma_eval.errors import FieldError

from .generated import GeneratedTask, Sample, Sequences

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
MIN, MAX, MED, SM, CLOSE = range(10, 15)
_WORDS = (*map(str, range(10)), *OPERATORS, "]")
_OPERATOR_SHARE = 0.25
# Trees drawn at a time. Part of what the seed decides: another number needs another version.
_TREES = 2048
# In a row, without a new sequence; of the published sizes about one tree in fifty is kept.
_BARREN_DRAWS = 1024


class ListOps(GeneratedTask, frozen=True):
    """Evaluate a nested list of digits: needs structure, at hundreds to thousands of steps."""

    version: ClassVar[int] = 1
    head: ClassVar[HeadKind] = "sequence_classification"

    kind: Literal["listops"]
    max_depth: Annotated[int, Field(ge=2, le=64)] = 10
    """Levels of a tree; those of the last are digits."""
    max_arguments: Annotated[int, Field(ge=2, le=64)] = 10
    """Arguments of an operator at most."""
    min_length: Annotated[int, Field(ge=1, le=65_536)] = 500
    """Every sequence has more tokens than this."""
    max_length: Annotated[int, Field(ge=2, le=65_536)] = 2000
    """Every sequence has fewer tokens than this."""
    train_sequences: Sequences = 96_000
    validation_sequences: Sequences = 2000
    test_sequences: Sequences = 2000

    @model_validator(mode="after")
    def _some_tree_fits(self) -> Self:
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = 2 + self.max_arguments * longest
        # The shortest tree that holds anything is an operator with two digits.
        if min(longest, self.max_length - 1) < max(4, self.min_length + 1):
            raise ValueError(
                f"trees of depth {self.max_depth} with {self.max_arguments} arguments have 4 to "
                f"{longest} tokens, none between min_length {self.min_length} and max_length "
                f"{self.max_length}"
            )
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """Digits, operators, and the bracket that closes a list."""
        return _WORDS

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits."""
        return _WORDS[:10]

    @property
    def steps(self) -> int:
        """Tokens of the longest sequence that may occur."""
        return self.max_length - 1

    def draw(self, counts: Sequence[int]) -> Iterator[Sample]:
        """Draw different sequences, as many as all the splits have.

        Raises
        ------
        FieldError
            When two million trees in a row give none that is new.
        """
        rng = np.random.Generator(np.random.PCG64(self.seed))
        seen: set[bytes] = set()
        barren = 0
        while len(seen) < sum(counts):
            barren += 1
            if barren > _BARREN_DRAWS:
                raise FieldError(
                    f"task: {barren * _TREES:,} random trees gave no new one after {len(seen):,}; "
                    "ask for fewer sequences, or widen min_length, max_length, max_depth or "
                    "max_arguments"
                )
            for words, value in _spelled(_grown(self, rng)):
                key = hashlib.blake2b(words.tobytes(), digest_size=16).digest()
                if key not in seen and len(seen) < sum(counts):
                    barren = 0
                    seen.add(key)
                    yield torch.from_numpy(words.astype(np.int32)), int(value)


@dataclass(frozen=True)
class _Level:
    """The nodes at one depth of many trees, those of a tree and those of a parent side by side.

    Parameters
    ----------
    tree
        Tree of each node.
    parent
        Index of its parent, in the level above; of a root, its own index.
    word
        Digit or operator.
    arguments
        Number of its children; 0 for a digit.
    """

    tree: Int[np.ndarray, " n"]
    parent: Int[np.ndarray, " n"]
    word: Int[np.ndarray, " n"]
    arguments: Int[np.ndarray, " n"]

    @property
    def first_child(self) -> Int[np.ndarray, " n"]:
        """Index of each node's first child, in the level below."""
        return self.arguments.cumsum() - self.arguments


def _grown(task: ListOps, rng: np.random.Generator) -> list[_Level]:
    """Draw trees level by level and keep those of the right length."""
    length = np.zeros(_TREES, dtype=np.int64)
    tree = parent = np.arange(_TREES)
    levels: list[_Level] = []
    for depth in range(1, task.max_depth + 1):
        nested = rng.random(tree.size) < _OPERATOR_SHARE
        # A root that is a digit gives a tree too short to keep, so none is drawn.
        nested = np.full_like(nested, depth == 1) if depth in (1, task.max_depth) else nested
        operators = MIN + rng.integers(len(OPERATORS), size=tree.size, dtype=np.int8)
        word = np.where(nested, operators, rng.integers(10, size=tree.size, dtype=np.int8))
        many = rng.integers(2, task.max_arguments + 1, size=tree.size)
        arguments = np.where(nested, many, 0)
        length += np.bincount(tree, 1 + nested, _TREES).astype(np.int64)
        # Children add a token each at least: a tree that is sure to be too long grows no further.
        too_long = length + np.bincount(tree, arguments, _TREES) >= task.max_length
        length[too_long] = task.max_length
        arguments[too_long[tree]] = 0
        levels.append(_Level(tree, parent, word, arguments))
        parent = np.repeat(np.arange(tree.size), arguments)
        tree = tree[parent]
    return _kept(levels, (length > task.min_length) & (length < task.max_length))


def _kept(levels: list[_Level], kept: Bool[np.ndarray, " trees"]) -> list[_Level]:
    """Forget the other trees, and count those that stay from 0."""
    rank = kept.cumsum() - 1
    chosen: list[_Level] = []
    above = rank  # of each node of the level above, its new index
    for level in levels:
        stays = kept[level.tree]
        chosen.append(
            _Level(
                tree=rank[level.tree[stays]],
                parent=above[level.parent[stays]],
                word=level.word[stays],
                arguments=level.arguments[stays],
            )
        )
        above = stays.cumsum() - 1
    return chosen


def _spelled(levels: list[_Level]) -> Iterator[tuple[Int[np.ndarray, " T"], int]]:
    """Yield the tokens of each tree, and its value."""
    sizes, values = _measured(levels)
    ends = sizes[0].cumsum()
    words = np.full(int(sizes[0].sum()), CLOSE, dtype=np.int8)
    place = ends - sizes[0]
    for depth, level in enumerate(levels):
        if depth:
            # Behind the parent's own token and all that its earlier children hold.
            before = sizes[depth].cumsum() - sizes[depth]
            eldest = levels[depth - 1].first_child[level.parent]
            place = place[level.parent] + 1 + before - before[eldest]
        words[place] = level.word
    for value, piece in zip(values, np.split(words, ends)[:-1], strict=True):
        yield piece, value


def _measured(
    levels: list[_Level],
) -> tuple[list[Int[np.ndarray, " n"]], Int[np.ndarray, " trees"]]:
    """Return the tokens below and with each node, level by level, and the value of each root."""
    sizes: list[Int[np.ndarray, " n"]] = []
    values = np.zeros(0, dtype=np.int64)
    below = np.zeros(0, dtype=np.int64)
    child_sizes = below
    for level in reversed(levels):
        size = np.where(level.arguments > 0, 2, 1)
        size += np.bincount(below, child_sizes, level.word.size).astype(np.int64)
        values = _values(level, values)
        sizes.append(size)
        below, child_sizes = level.parent, size
    return sizes[::-1], values


def _values(level: _Level, children: Int[np.ndarray, " c"]) -> Int[np.ndarray, " n"]:
    """Apply each operator of a level to the values of its children."""
    values = level.word.astype(np.int64)
    nested = np.flatnonzero(level.arguments)
    if not nested.size:
        return values
    first, count = level.first_child[nested], level.arguments[nested]
    # One row per operator, its arguments in order of size and then fillers that exceed them all.
    column = np.arange(count.max())
    place = np.minimum(first[:, None] + column, children.size - 1)
    row = np.sort(np.where(column < count[:, None], children[place], 10), axis=1)
    at = np.arange(nested.size)
    largest = row[at, count - 1]
    median = (row[at, (count - 1) // 2] + row[at, count // 2]) // 2
    total = np.add.reduceat(children, first) % 10
    values[nested] = np.choose(level.word[nested] - MIN, [row[:, 0], largest, median, total])
    return values
