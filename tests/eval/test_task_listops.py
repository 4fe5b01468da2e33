"""ListOps: the answer is the value of what is spelled, and draws follow the published grammar."""

import random
from collections import Counter
from itertools import islice
from typing import Any, cast

import pytest
from pydantic import ValidationError
from scipy.stats import chi2_contingency, ks_2samp

from sma_eval.errors import FieldError
from sma_eval.tasks import ListOps
from sma_eval.tasks.listops import CLOSE, MAX, MED, MIN, SM

PUBLISHED = ListOps(kind="listops")
SMALL = ListOps(kind="listops", max_depth=5, max_arguments=5, min_length=10, max_length=60)


def draw(task: ListOps, count: int) -> list[tuple[list[int], int]]:
    return [(words.tolist(), int(value)) for words, value in task.draw((count,))]


def value_of(words: list[int]) -> int:
    """Read one expression from the front of `words`, which it takes away, by recursion."""
    first = words.pop(0)
    if first < MIN:
        return first
    arguments = []
    while words[0] != CLOSE:
        arguments.append(value_of(words))
    del words[0]
    if first == MED:
        ranked = sorted(arguments)
        middle = len(ranked) // 2
        return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) // 2
    return {MIN: min, MAX: max, SM: lambda values: sum(values) % 10}[first](arguments)


def grow(task: ListOps, rng: random.Random, depth: int = 1) -> list[int]:
    """Spell one tree of the grammar, of any length, by recursion."""
    if depth == task.max_depth or rng.random() > 0.25:
        return [rng.randrange(10)]
    arguments = [
        word
        for _ in range(rng.randint(2, task.max_arguments))
        for word in grow(task, rng, depth + 1)
    ]
    return [rng.choice((MIN, MAX, MED, SM)), *arguments, CLOSE]


def grown(task: ListOps, count: int) -> list[list[int]]:
    rng = random.Random(0)
    trees = (grow(task, rng) for _ in iter(int, 1))
    return list(islice((t for t in trees if task.min_length < len(t) < task.max_length), count))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MIN 4 2 ]", 2),
        ("[MAX 4 [MIN 9 7 ] 1 ]", 7),
        ("[MED 1 8 ]", 4),  # 4.5, rounded down
        ("[MED 9 1 5 ]", 5),
        ("[SM 9 9 [SM 1 1 ] ]", 0),
        ("[MED [MAX 3 4 ] 0 [SM 6 7 ] [MIN 2 8 ] ]", 2),
    ],
)
def test_the_recursive_evaluator_of_these_tests_computes_by_hand(text: str, value: int) -> None:
    assert value_of([PUBLISHED.words.index(word) for word in text.split()]) == value


def test_the_answer_is_the_value_of_what_is_spelled() -> None:
    for task, count in ((PUBLISHED, 40), (SMALL, 1000)):
        for words, value in draw(task, count):
            rest = list(words)
            assert value_of(rest) == value
            assert not rest  # one expression, spelled whole


def test_every_sequence_obeys_the_grammar() -> None:
    for words, _ in draw(SMALL, 1000):
        assert SMALL.min_length < len(words) < SMALL.max_length
        counts: list[int] = []
        deepest = 0
        for word in words:
            if word == CLOSE:
                assert 2 <= counts.pop() <= SMALL.max_arguments
                continue
            deepest = max(deepest, len(counts) + 1)
            if counts:
                counts[-1] += 1
            if MIN <= word < CLOSE:
                counts.append(0)
        assert deepest <= SMALL.max_depth


def test_draws_have_the_lengths_words_and_answers_of_the_grammar() -> None:
    ours, theirs = draw(SMALL, 3000), grown(SMALL, 3000)
    lengths = cast(Any, ks_2samp)([len(words) for words, _ in ours], [len(w) for w in theirs])
    assert lengths.pvalue > 1e-3
    used = [
        Counter(word for words in sequences for word in words)
        for sequences in ([words for words, _ in ours], theirs)
    ]
    answers = [Counter(value for _, value in ours), Counter(value_of(list(w)) for w in theirs)]
    for pair, size in ((used, 15), (answers, 10)):
        table = [[counter[i] for i in range(size)] for counter in pair]
        assert min(map(min, table)) > 0
        # Words of a sequence are not independent of each other, hence the small threshold.
        assert cast(Any, chi2_contingency)(table).pvalue > 1e-4


def test_the_published_sizes_give_all_ten_classes_and_lengths_between_the_bounds() -> None:
    sequences = draw(PUBLISHED, 600)
    lengths = [len(words) for words, _ in sequences]
    assert 500 < min(lengths) < 600
    assert 1800 < max(lengths) < 2000
    shares = Counter(value for _, value in sequences)
    assert set(shares) == set(range(10))
    # MIN and MAX make the ends of the scale the commonest answers, but by far not the only ones.
    assert {value for value, _ in shares.most_common(2)} == {0, 9}
    assert max(shares.values()) < 0.25 * 600
    assert min(shares.values()) > 0.03 * 600


def test_no_sequence_is_drawn_twice_and_the_draw_ends_when_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sma_eval.tasks.listops._BARREN_DRAWS", 20)
    few = ListOps(kind="listops", max_depth=2, max_arguments=2, min_length=1, max_length=5)
    # Four operators on two digits.
    every = draw(few, 400)
    assert len({tuple(words) for words, _ in every}) == 400
    with pytest.raises(FieldError, match="gave no new one after 400"):
        draw(few, 401)


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_depth": 3, "max_arguments": 3},  # 11 tokens at most
        {"min_length": 100, "max_length": 101},
        {"min_length": 1, "max_length": 4},
    ],
)
def test_bounds_that_no_tree_meets_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="none between min_length"):
        ListOps(kind="listops", **sizes)
