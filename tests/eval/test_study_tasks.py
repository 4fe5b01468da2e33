"""What models learn: the answer follows from the input, the same data from the same seed."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sma_core.dataset import DatasetWriter, NumericChannel, PreparedDataset
from sma_core.errors import DatasetError
from sma_eval.errors import FieldError
from sma_eval.tasks import (
    AssociativeRecall,
    GeneratedTask,
    ListOps,
    Prepared,
    SelectiveCopying,
    generated,
)
from sma_eval.tasks.selective_copying import NOISE, RECALL, selective_copying

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
    first = TASK.prepare(data=tmp_path, cache=tmp_path / "cache")
    written = (first.folder / "dataset.json").stat().st_mtime_ns
    again = TASK.prepare(data=tmp_path, cache=tmp_path / "cache")
    assert again.folder == first.folder
    assert (again.folder / "dataset.json").stat().st_mtime_ns == written
    elsewhere = TASK.prepare(data=tmp_path, cache=tmp_path / "other")
    assert elsewhere.card.digest == first.card.digest
    other = TASK.model_copy(update={"seed": 1}).prepare(data=tmp_path, cache=tmp_path / "cache")
    assert other.folder != first.folder
    assert other.card.digest != first.card.digest


def test_its_splits_share_no_draw_and_fit_the_model_described(tmp_path: Path) -> None:
    dataset = TASK.prepare(data=tmp_path, cache=tmp_path)
    inputs, head = TASK.describe(tmp_path)
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
    dataset = TASK.prepare(data=tmp_path, cache=tmp_path)
    file = dataset.folder / "test.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="test"):
        TASK.prepare(data=tmp_path, cache=tmp_path)


SMALL: dict[str, GeneratedTask] = {
    "selective_copying": TASK,
    "mqar": AssociativeRecall(
        kind="mqar",
        length=12,
        pairs=2,
        vocabulary=12,
        train_sequences=6,
        validation_sequences=4,
        test_sequences=3,
    ),
    "listops": ListOps(
        kind="listops",
        max_depth=4,
        max_arguments=4,
        min_length=6,
        max_length=30,
        train_sequences=6,
        validation_sequences=4,
        test_sequences=3,
    ),
}
# Of these data sets as first released: who changes a generator raises its version, and this.
DIGESTS = {
    "selective_copying": (2, "5351f5ddecc3a06c"),
    "mqar": (1, "0d725f6606680aeb"),
    "listops": (1, "024d47b8b396c96a"),
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_seed_gives_the_same_bytes_for_good(kind: str, tmp_path: Path) -> None:
    task = SMALL[kind]
    dataset = task.prepare(data=tmp_path, cache=tmp_path)
    assert (task.version, dataset.card.digest[:16]) == DIGESTS[kind]
    inputs, head = task.describe(tmp_path)
    assert inputs.categorical == (len(dataset.card.categorical[0].vocabulary),)
    assert (head.kind, head.outputs) == (task.head, len(dataset.card.classes))
    longest = max(int(dataset.split(name).offsets.diff().max()) for name in dataset.card.splits)
    assert longest <= task.steps


def test_a_draw_in_pieces_fills_the_splits_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "_CHUNK", 40)
    for task in SMALL.values():
        splits = task.prepare(data=tmp_path, cache=tmp_path).card.splits
        assert [split.sequences for split in splits.values()] == [6, 4, 3]


def test_many_that_want_the_same_data_set_have_it_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = GeneratedTask._write

    def slow_write(self: GeneratedTask, folder: Path, parameters: dict[str, object]) -> None:
        written.append(folder)
        time.sleep(0.2)
        write(self, folder, parameters)

    monkeypatch.setattr(GeneratedTask, "_write", slow_write)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: TASK.prepare(data=tmp_path, cache=tmp_path), range(4)))
    assert len(written) == 1
    assert len({dataset.card.digest for dataset in found}) == 1


def test_what_a_killed_generation_left_is_cleared_away(tmp_path: Path) -> None:
    whole = TASK.prepare(data=tmp_path, cache=tmp_path / "elsewhere")
    cache = tmp_path / "cache"
    # A writer that nobody closes leaves on disk what a killed process leaves.
    killed = DatasetWriter(
        cache / whole.folder.name, name="killed", numeric=[NumericChannel(name="a")]
    )
    killed.append("train", entity=0, time=torch.arange(3), numeric=torch.zeros(3, 1))
    again = TASK.prepare(data=tmp_path, cache=cache)
    assert again.card.digest == whole.card.digest
    assert not list(cache.glob("*.partial"))
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [whole.folder.name]
    killed.discard()


def test_a_generation_that_fails_leaves_nothing_to_be_taken_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(self: SelectiveCopying, counts: Sequence[int]) -> Iterator[generated.Sample]:
        yield torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SelectiveCopying, "draw", draw)
        with pytest.raises(KeyboardInterrupt):
            TASK.prepare(data=tmp_path, cache=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert TASK.prepare(data=tmp_path, cache=tmp_path).card.splits["train"].sequences == 6


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
    inputs, head = prepared(dataset="press").describe(press)
    assert (inputs.numeric, inputs.categorical) == (2, ())
    assert (head.kind, head.outputs) == ("forecast", 2)
    task = prepared(dataset="press")
    assert isinstance(task.prepare(data=press, cache=press / "cache"), PreparedDataset)
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
        prepared(**fields).describe(press)


def test_an_absent_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        prepared(dataset="nowhere").describe(tmp_path)
