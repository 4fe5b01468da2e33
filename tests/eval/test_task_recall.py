"""Multi-query associative recall: each key is asked once, and its own value is the answer."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sma_eval.tasks import AssociativeRecall
from sma_eval.tasks.associative_recall import BLANK, associative_recall


def task(**fields: object) -> AssociativeRecall:
    sizes = {"length": 24, "pairs": 4, "vocabulary": 20, "random_filler": False}
    return AssociativeRecall.model_validate({"kind": "mqar", **sizes, **fields})


def draw(of: AssociativeRecall, sequences: int) -> tuple[Tensor, Tensor]:
    return associative_recall(of, sequences, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("random_filler", [False, True])
def test_each_key_is_asked_once_after_the_pairs_and_only_there_is_a_target(
    random_filler: bool,
) -> None:
    of = task(random_filler=random_filler)
    for words, target in zip(*(t.tolist() for t in draw(of, 300)), strict=True):
        value_of = dict(zip(words[0:8:2], words[1:8:2], strict=True))
        assert len(value_of) == 4
        assert all(0 < key < 10 for key in value_of)
        assert len(set(value_of.values())) == 4
        asked = [step for step, answer in enumerate(target) if answer >= 0]
        assert sorted(words[step] for step in asked) == sorted(value_of)
        for step in asked:
            assert step >= 8
            assert step % 2 == 0
            assert of.words[value_of[words[step]]] == of.classes[target[step]]
        if not random_filler:
            assert all(words[step] == BLANK for step in range(8, 24) if step not in asked)


def test_random_filler_comes_from_the_whole_vocabulary() -> None:
    words, target = draw(task(random_filler=True), 400)
    assert set(words[:, 8:][target[:, 8:] < 0].tolist()) == set(range(20))


@pytest.mark.parametrize("power", [1.0, 0.01])
def test_gaps_follow_the_power_law(power: float) -> None:
    # One pair: its place is a plain draw with these weights.
    sequences = 20_000
    _, target = draw(task(pairs=1, power=power), sequences)
    share = (target[:, 2::2] >= 0).double().mean(dim=0)
    weight = torch.arange(1, 12, dtype=torch.float64) ** (power - 1.0)
    expected = weight / weight.sum()
    # Five standard errors.
    assert ((share - expected).abs() < 5 * (expected / sequences).sqrt()).all()


def test_keys_and_values_are_drawn_evenly() -> None:
    words, _ = draw(task(), 5000)
    for start, names in ((0, range(1, 10)), (1, range(10, 20))):
        share = torch.bincount(words[:, start:8:2].flatten(), minlength=20)[list(names)] / 20_000
        even = 1 / len(names)
        assert (share - even).abs().max() < 5 * (even / 20_000) ** 0.5


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pairs": 7}, "7 pairs and as many queries need 28 steps, and length is 24"),
        ({"vocabulary": 8}, "4 pairs need as many keys, and vocabulary 8 has 3"),
        ({"length": 25}, "multiple of 2"),
        ({"power": 0.0}, "greater than 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        task(**fields)
