"""What models learn: the answer follows from the input, the same data from the same seed."""

from pathlib import Path

import pytest
import torch

from sma_core.dataset import DatasetWriter, NumericChannel, PreparedDataset
from sma_core.errors import DatasetError
from sma_eval.errors import FieldError
from sma_eval.study import Prepared, SelectiveCopying
from sma_eval.tasks import NOISE, RECALL, describe_task, prepare_task, selective_copying

TASK = SelectiveCopying(
    kind="selective_copying",
    length=9,
    tokens=3,
    vocabulary=5,
    train_sequences=6,
    validation_sequences=4,
    test_sequences=3,
)


def draw(seed: int = 0, sequences: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    return selective_copying(TASK, sequences, torch.Generator().manual_seed(seed))


def test_the_answer_is_what_was_shown_in_the_order_in_which_it_was_shown() -> None:
    words, target = draw()
    for row, answer in zip(words.tolist(), target.tolist(), strict=True):
        shown = [word - 2 for word in row[:9] if word != NOISE]
        assert len(shown) == 3
        assert answer[9:] == shown
        assert answer[:9] == [-1] * 9
        assert row[9:] == [RECALL] * 3


def test_places_and_tokens_are_drawn_evenly() -> None:
    words, target = draw(sequences=4000)
    places = (words[:, :9] != NOISE).double().mean(dim=0)
    # Five standard errors of a share of 4,000 draws.
    assert (places - 3 / 9).abs().max() < 5 * (3 / 9 * 6 / 9 / 4000) ** 0.5
    tokens = torch.bincount(target[:, 9:].flatten(), minlength=5) / 12_000
    assert (tokens - 1 / 5).abs().max() < 5 * (1 / 5 * 4 / 5 / 12_000) ** 0.5


def test_the_seed_decides_the_draw() -> None:
    assert torch.equal(draw(1)[0], draw(1)[0])
    assert not torch.equal(draw(1)[0], draw(2)[0])


def test_a_generated_data_set_is_cached_by_its_parameters(tmp_path: Path) -> None:
    first = prepare_task(TASK, data=tmp_path, cache=tmp_path / "cache")
    written = (first.folder / "dataset.json").stat().st_mtime_ns
    again = prepare_task(TASK, data=tmp_path, cache=tmp_path / "cache")
    assert again.folder == first.folder
    assert (again.folder / "dataset.json").stat().st_mtime_ns == written
    elsewhere = prepare_task(TASK, data=tmp_path, cache=tmp_path / "other")
    assert elsewhere.card.digest == first.card.digest
    other = prepare_task(
        TASK.model_copy(update={"seed": 1}), data=tmp_path, cache=tmp_path / "cache"
    )
    assert other.folder != first.folder
    assert other.card.digest != first.card.digest


def test_its_splits_share_no_draw_and_fit_the_model_described(tmp_path: Path) -> None:
    dataset = prepare_task(TASK, data=tmp_path, cache=tmp_path)
    inputs, head = describe_task(TASK, tmp_path)
    assert inputs.categorical == (7,)
    assert (head.kind, head.outputs) == ("step_classification", len(dataset.card.classes))
    splits = dataset.card.splits
    assert {name: split.sequences for name, split in splits.items()} == {
        "train": 6,
        "validation": 4,
        "test": 3,
    }
    first = [dataset.split(name).read(0, 12).categorical for name in splits]
    assert len({tuple(words.flatten().tolist()) for words in first if words is not None}) == 3


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    dataset = prepare_task(TASK, data=tmp_path, cache=tmp_path)
    file = dataset.folder / "test.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="test"):
        prepare_task(TASK, data=tmp_path, cache=tmp_path)


@pytest.fixture
def press(tmp_path: Path) -> Path:
    """A data folder with one prepared data set: two numeric channels, no classes."""
    with DatasetWriter(
        tmp_path / "press",
        name="press",
        numeric=[NumericChannel(name="a"), NumericChannel(name="b")],
    ) as writer:
        for split in ("train", "validation"):
            writer.append(split, entity=0, time=torch.arange(20), numeric=torch.zeros(20, 2))
    return tmp_path


def prepared(**fields: str) -> Prepared:
    return Prepared.model_validate({"kind": "prepared", "head": "forecast", **fields})


def test_a_prepared_data_set_is_described_as_its_card_says(press: Path) -> None:
    inputs, head = describe_task(prepared(dataset="press"), press)
    assert (inputs.numeric, inputs.categorical) == (2, ())
    assert (head.kind, head.outputs) == ("forecast", 2)
    task = prepared(dataset="press")
    assert isinstance(prepare_task(task, data=press, cache=press / "cache"), PreparedDataset)
    assert not (press / "cache").exists()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dataset": "press", "test": "judged"}, r"task\.test: 'press' has no split 'judged'"),
        ({"dataset": "press", "head": "step_classification"}, r"task\.head: .* no classes"),
    ],
)
def test_what_a_prepared_data_set_lacks_is_named(
    press: Path, fields: dict[str, str], expected: str
) -> None:
    with pytest.raises(FieldError, match=expected):
        describe_task(prepared(**fields), press)


def test_an_absent_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        describe_task(prepared(dataset="nowhere"), tmp_path)
