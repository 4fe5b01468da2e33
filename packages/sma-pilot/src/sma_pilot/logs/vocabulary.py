"""The values of a categorical channel: words as they stand, or the templates of a text."""

from collections import Counter
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.logs.drain import WILDCARD, Drain
from sma_pilot.plan import TextSource

MAX_VOCABULARY = 1024
UNKNOWN_VALUE = "<unknown>"
"""Value 0 of every vocabulary: missing, unseen in training, or too rare to be kept."""
_REMEMBERED = 200_000


class Vocabulary(Protocol):
    """The values of one channel."""

    values: tuple[str, ...]
    """`UNKNOWN_VALUE`, then the values that training has."""

    def encode(self, words: pl.Series) -> NDArray[np.int32]:
        """Return the place of each text [T] in `values`; 0 for one that is null or unknown."""
        ...


class Words:
    """Words as they stand in the log, the commonest of training.

    Parameters
    ----------
    counts : Counter
        How often training has each word.
    """

    def __init__(self, counts: Counter[str]) -> None:
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = sorted(word for word, _ in common[: MAX_VOCABULARY - 1] if word != UNKNOWN_VALUE)
        self.values = (UNKNOWN_VALUE, *kept)

    def encode(self, words: pl.Series) -> NDArray[np.int32]:
        """See `Vocabulary.encode`."""
        places = list(range(len(self.values)))
        return words.replace_strict(
            list(self.values), places, default=0, return_dtype=pl.Int32
        ).to_numpy()


class Templates:
    """Templates of the masked lines of training, the commonest of them.

    Parameters
    ----------
    counts : Counter
        How often training has each masked line, in the order in which it first has it. Templates
        are mined in that order.
    text : TextSource
        How they are mined.
    """

    def __init__(self, counts: Counter[str], text: TextSource) -> None:
        drain = Drain(text.similarity, text.depth, text.children)
        groups = [(drain.add(line), count) for line, count in counts.items()]
        lines: dict[str, int] = {}
        examples: dict[str, str] = {}
        for group, count in groups:
            # Two groups may have come to the same template: they are one from here on.
            template = " ".join(group.template)
            lines[template] = lines.get(template, 0) + count
            examples.setdefault(template, group.example)
        common = sorted(lines, key=lambda template: -lines[template])[: MAX_VOCABULARY - 1]
        kept = [template for template in lines if template in {*common} - {UNKNOWN_VALUE}]
        self.values = (UNKNOWN_VALUE, *kept)
        self._text = text
        self._lines = {template: lines[template] for template in kept}
        self._examples = examples
        self._found = len(lines)
        self._by_length: dict[int, list[tuple[int, list[str]]]] = {}
        for place, template in enumerate(self.values[1:], start=1):
            words = template.split()
            self._by_length.setdefault(len(words), []).append((place, words))
        for same in self._by_length.values():
            # The most special one first, so that the first that fits is the answer.
            same.sort(key=lambda one: (one[1].count(WILDCARD), one[0]))
        self._known: dict[str, int] = {}

    def encode(self, words: pl.Series) -> NDArray[np.int32]:
        """See `Vocabulary.encode`."""
        distinct = words.unique().drop_nulls()
        if len(self._known) + len(distinct) > _REMEMBERED:
            self._known = {}
        for line in distinct:
            if line not in self._known:
                self._known[line] = self._match(line)
        places = [0 if line is None else self._known[line] for line in words]
        return np.array(places, dtype=np.int32)

    def _match(self, line: str) -> int:
        words = line.split()
        for place, template in self._by_length.get(len(words), ()):
            pairs = zip(template, words, strict=True)
            if all(own in (WILDCARD, word) for own, word in pairs):
                return place
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return what provenance says: how they were mined, lines and an example of each."""
        return {
            "mined": self._text.model_dump(mode="json"),
            "found": self._found,
            "templates": [
                {"template": name, "lines": count, "example": self._examples[name]}
                for name, count in self._lines.items()
            ],
        }
