"""Templates of log lines, mined by Drain: what lines of one kind have in common [1]_.

A line is a list of words. Lines of as many words, with the same first words, are compared with the
templates found so far: with the one that shares most words the line goes, if these are enough, and
words in which the two differ become a wildcard. Otherwise the line is a template of its own. One
pass, in the order of the lines, so the same lines in the same order give the same templates.

Defaults and ties are those of Drain3 [2]_, whose templates it gives (recorded cases in the tests).
That package itself cannot stand beside MLflow: it asks for one release of `cachetools`, four major
versions old. And it keeps its state by `jsonpickle`, which runs code of whoever wrote the file.

References
----------
.. [1] P. He, J. Zhu, Z. Zheng, M. R. Lyu, "Drain: an online log parsing approach with fixed depth
   tree", ICWS 2017.
.. [2] D. Ohana et al., Drain3 0.9.11, github.com/logpai/Drain3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

WILDCARD = "<*>"


@dataclass
class Group:
    """Lines of one kind.

    Parameters
    ----------
    template : list of str
        Words, `WILDCARD` where lines differ.
    example : str
        The first line.
    """

    template: list[str]
    example: str


@dataclass
class _Node:
    children: dict[str, "_Node"] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)


class Drain:
    """Mines templates line by line; `groups` holds what was found, in the order it was found.

    Parameters
    ----------
    similarity : float
        Share of equal words, wildcards not counted, from which on a line joins a template.
    depth : int
        Levels of the tree, at least 3: its root, the number of words, ``depth - 3`` first words
        and the leaves.
    children : int
        Most branches of a node; further words share the branch of the wildcard.
    """

    def __init__(self, similarity: float = 0.4, depth: int = 4, children: int = 100) -> None:
        self._similarity = similarity
        self._words = depth - 3
        self._children = children
        self._by_length: dict[int, _Node] = {}
        self.groups: list[Group] = []

    def add(self, line: str) -> Group:
        """Take the next line, and return the group that it is of."""
        words = line.split()
        leaf = self._find(words)
        group = None if leaf is None else self._closest(leaf.groups, words)
        if group is None:
            group = Group(words, line)
            self.groups.append(group)
            self._place(words).groups.append(group)
            return group
        pairs = zip(group.template, words, strict=True)
        group.template = [own if own == word else WILDCARD for own, word in pairs]
        return group

    def _first_words(self, words: Sequence[str]) -> Sequence[str]:
        return words[: max(0, min(self._words, len(words) - 1))]

    def _find(self, words: Sequence[str]) -> _Node | None:
        node = self._by_length.get(len(words))
        for word in self._first_words(words):
            if node is None:
                return None
            node = node.children.get(word) or node.children.get(WILDCARD)
        return node

    def _place(self, words: Sequence[str]) -> _Node:
        """Return the leaf of a new template, made where there is none."""
        node = self._by_length.setdefault(len(words), _Node())
        for word in self._first_words(words):
            node = node.children.setdefault(self._branch(node, word), _Node())
        return node

    def _branch(self, node: _Node, word: str) -> str:
        """Choose the branch for a word: its own, while there is room for it and the wildcard."""
        if word in node.children:
            return word
        room = len(node.children) + (WILDCARD not in node.children) < self._children
        is_value = any(letter.isdigit() for letter in word)
        return word if room and not is_value else WILDCARD

    def _closest(self, groups: Sequence[Group], words: Sequence[str]) -> Group | None:
        """Return the group that shares most words; of equals the most general, then the oldest."""
        best, rank = None, (-1.0, -1)
        for group in groups:
            pairs = zip(group.template, words, strict=True)
            equal = sum(own == word and own != WILDCARD for own, word in pairs)
            share = equal / len(words) if words else 1.0
            own_rank = (share, group.template.count(WILDCARD))
            if own_rank > rank:
                best, rank = group, own_rank
        return best if rank[0] >= self._similarity else None
