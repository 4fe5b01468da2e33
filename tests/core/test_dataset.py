"""The data set on disk: what is written is read back, what is damaged is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from sma_core.dataset import CategoricalChannel, DatasetWriter, NumericChannel, PreparedDataset
from sma_core.errors import DatasetError

NUMERIC = (NumericChannel(name="a", center=1.5, scale=2.0), NumericChannel(name="b"))
CATEGORICAL = (CategoricalChannel(name="mode", vocabulary=("unknown", "idle", "run")),)


def writer(folder: Path, **changes) -> DatasetWriter:
    described = {
        "name": "press line",
        "numeric": NUMERIC,
        "categorical": CATEGORICAL,
        "classes": ("normal", "event"),
        "period_ns": 1_000,
        "entities": ("press-1", "press-2"),
        "provenance": {"files": ["a.csv"]},
    }
    return DatasetWriter(folder, **(described | changes))


def columns(rows: int, start: int = 0, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    numeric = torch.randn(rows, 2, generator=generator)
    numeric[torch.rand(rows, 2, generator=generator) < 0.2] = float("nan")
    return {
        "time": (torch.arange(rows) + start) * 1_000,
        "numeric": numeric,
        "categorical": torch.randint(0, 3, (rows, 1), generator=generator, dtype=torch.int32),
        "label": torch.randint(-1, 3, (rows,), generator=generator, dtype=torch.int32),
        "target": torch.randint(-1, 2, (rows,), generator=generator, dtype=torch.int32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with writer(tmp_path / "data") as out:
        out.append("train", entity=0, **columns(7))
        out.append("train", entity=1, **columns(5, seed=1))
        out.append("judged", entity=1, **columns(3, seed=2))
    return tmp_path / "data"


sequences = st.lists(
    st.tuples(st.sampled_from(["train", "validation"]), st.integers(0, 1), st.integers(1, 9)),
    max_size=12,
)


@given(sequences=sequences, pieces=st.integers(1, 4))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, sequences, pieces: int) -> None:
    folder = tmp_path_factory.mktemp("round") / "data"
    written: dict[str, list] = {"train": [], "validation": []}
    with writer(folder, splits=("train", "validation")) as out:
        for seed, (split, entity, rows) in enumerate(sequences):
            sequence = columns(rows, seed=seed)
            written[split].append((entity, sequence))
            for start in range(0, rows, pieces):
                piece = {key: value[start : start + pieces] for key, value in sequence.items()}
                out.append(split, entity=entity, continued=start > 0, **piece)
    dataset = PreparedDataset.open(folder, verify=True)
    assert dataset.card.numeric == NUMERIC
    assert dataset.card.categorical == CATEGORICAL
    for name, expected in written.items():
        split = dataset.split(name)
        assert [ref.entity for ref in split.sequences] == [entity for entity, _ in expected]
        assert split.rows == sum(len(sequence["time"]) for _, sequence in expected)
        for ref, (_, sequence) in zip(split.sequences, expected, strict=True):
            rows = split.read(ref.start, ref.stop)
            for key, value in sequence.items():
                torch.testing.assert_close(
                    getattr(rows, key), value, rtol=0, atol=0, equal_nan=True
                )
        times = [sequence["time"] for _, sequence in expected]
        card = dataset.card.splits[name]
        assert card.first_time_ns == (min(int(time[0]) for time in times) if times else None)
        assert card.last_time_ns == (max(int(time[-1]) for time in times) if times else None)


def test_the_stock_library_reads_a_split(folder: Path) -> None:
    tensors = load_file(folder / "train.safetensors")
    assert tensors["offsets"].tolist() == [0, 7, 12]
    assert tensors["entity"].tolist() == [0, 1]
    torch.testing.assert_close(tensors["numeric"][:7], columns(7)["numeric"], equal_nan=True)
    header = int.from_bytes((folder / "train.safetensors").read_bytes()[:8], "little")
    with safe_open(folder / "train.safetensors", "pt") as file:
        assert header % 8 == 0
        # Every tensor starts at a multiple of its item size, so that a map of it is aligned.
        for name in file.keys():  # noqa: SIM118
            assert tensors[name].data_ptr() % tensors[name].element_size() == 0


def test_read_copies_so_that_writing_to_rows_changes_nothing(folder: Path) -> None:
    split = PreparedDataset.open(folder).split("train")
    split.read(0, 3).time.fill_(-1)
    assert split.read(0, 3).time.tolist() == [0, 1_000, 2_000]


def test_a_file_far_larger_than_memory_opens_and_reads(tmp_path: Path) -> None:
    """A sparse file of 4 TB: reading it whole, or reserving memory for it, could not succeed."""
    rows = 10**12 // 2
    shape = {
        "numeric": ("F32", [rows, 1], 4 * rows),
        "time": ("I64", [rows], 8 * rows),
        "label": ("I32", [rows], 4 * rows),
        "offsets": ("I64", [2], 16),
        "entity": ("I32", [1], 4),
    }
    header, end = {}, 0
    for name in ("time", "offsets", "numeric", "label", "entity"):
        dtype, extents, nbytes = shape[name]
        header[name] = {"dtype": dtype, "shape": extents, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "data").mkdir()
    try:
        with (tmp_path / "data" / "train.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.seek(header["offsets"]["data_offsets"][0] + 8, os.SEEK_CUR)
            file.write(rows.to_bytes(8, "little"))
            file.truncate(8 + len(text) + end)
    except OSError as error:
        pytest.skip(f"this file system has no sparse files of 8 TB: {error}")
    card = {
        "format": "sma.dataset",
        "version": 1,
        "name": "big",
        "categorical": [],
        "classes": [],
        "numeric": [{"name": "a", "center": 0.0, "scale": 1.0}],
        "period_ns": 1,
        "entities": [],
        "provenance": {},
        "splits": {
            "train": {
                "file": "train.safetensors",
                "rows": rows,
                "sequences": 1,
                "sha256": "",
                "first_time_ns": 0,
                "last_time_ns": 0,
            }
        },
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(card))
    split = PreparedDataset.open(tmp_path / "data").split("train")
    last = split.read(rows - 2, rows)
    assert last.numeric is not None
    assert last.numeric.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numeric": torch.zeros(4, 2, dtype=torch.float64)}, "numeric: must be float32"),
        ({"numeric": torch.zeros(4, 3)}, "numeric: must be float32 [4, 2], got float32 [4, 3]"),
        ({"numeric": torch.zeros(3, 2)}, "numeric: has 3 rows, time has 4"),
        ({"numeric": None}, "numeric: the data set has 2 such channels"),
        (
            {"numeric": torch.tensor([[0, 0], [0, 0], [0, torch.inf], [0, 0.0]])},
            "numeric: row 2 of channel 'b' is infinite",
        ),
        ({"time": torch.tensor([0, 2, 1, 3])}, "time: row 2 goes backwards"),
        ({"time": torch.zeros(4)}, "time: must be int64"),
        ({"time": torch.zeros(0, dtype=torch.int64)}, "time: a sequence has at least one row"),
        (
            {"categorical": torch.full((4, 1), 3, dtype=torch.int32)},
            "categorical: row 0 of channel 'mode' is outside the vocabulary",
        ),
        ({"label": torch.tensor([0, 0, -2, 0], dtype=torch.int32)}, "label: row 2 is below -1"),
        ({"target": torch.tensor([0, 0, 0, 2], dtype=torch.int32)}, "target: row 3 is none of"),
        ({"target": None}, "target: every append gives it, or none does"),
        ({"entity": 2}, "entity: 2 is none of the 2"),
        ({"sequence_target": 0}, "sequence_target: every sequence has it, or none"),
        ({"numeric": "text"}, "numeric: is no tensor"),
        ({"split": "../out"}, "split '../out': a name is letters"),
    ],
)
def test_a_bad_append_names_tensor_and_row(tmp_path: Path, change: dict, message: str) -> None:
    arguments = {"split": "train", "entity": 0, **columns(4)} | change
    with writer(tmp_path / "data") as out:
        out.append("train", entity=0, **columns(4))
        with pytest.raises(DatasetError) as caught:
            out.append(**arguments)
        assert message in str(caught.value)
    # Nothing of the refused append was kept.
    assert PreparedDataset.open(tmp_path / "data", verify=True).split("train").rows == 4


def test_a_continued_piece_must_fit_its_sequence(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as out:
        with pytest.raises(DatasetError, match="no sequence to continue"):
            out.append("train", entity=0, continued=True, **columns(4))
        out.append("train", entity=0, **columns(4))
        with pytest.raises(DatasetError, match="continued sequence is entity 0's"):
            out.append("train", entity=1, continued=True, **columns(4, start=4))
        with pytest.raises(DatasetError, match="row 4 goes backwards"):
            out.append("train", entity=0, continued=True, **columns(4, start=2))


def test_numpy_arrays_are_columns_even_when_read_only(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {key: value.numpy() for key, value in columns(4).items()}
    for array in arrays.values():
        array.setflags(write=False)
    with writer(tmp_path / "data") as out:
        out.append("train", entity=0, **arrays)
    rows = PreparedDataset.open(tmp_path / "data").split("train").read(0, 4)
    torch.testing.assert_close(rows.numeric, columns(4)["numeric"], equal_nan=True)


def test_the_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writer(tmp_path / "data") as out:
            out.append("train", entity=0, **columns(4))
            assert not (tmp_path / "data").exists()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_left_alone(folder: Path) -> None:
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DatasetError, match="is not empty: remove it"):
        writer(folder)
    assert (folder / "dataset.json").read_bytes() == before


def test_a_data_set_without_rows_or_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing was appended"), writer(tmp_path / "data"):
        pass
    with pytest.raises(DatasetError, match="neither numeric nor categorical"):
        writer(tmp_path / "data", numeric=(), categorical=())
    with pytest.raises(DatasetError, match="'a' appears twice"):
        writer(tmp_path / "data", numeric=(NUMERIC[0], NUMERIC[0]))
    with pytest.raises(DatasetError, match="scale above 0"):
        writer(tmp_path / "data", numeric=(NumericChannel(name="a", scale=0.0),))
    assert list(tmp_path.iterdir()) == []


def edit(folder: Path, path: tuple[str, ...], value: object) -> None:
    card = json.loads((folder / "dataset.json").read_text())
    inner = card
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "dataset.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "is version 2 and this library reads version 1"),
        (("format",), "other", "format is not 'sma.dataset'"),
        (("period_ns",), "1", "field 'period_ns' has the wrong type"),
        (("numeric",), [{"name": "a"}], "field 'center' is missing"),
        (("splits", "train", "rows"), 11, "is not what the card says"),
        (("splits", "train", "sequences"), 10**12, "is not what the card says"),
        (("splits", "train", "file"), "../train.safetensors", "must be 'train.safetensors'"),
        (
            ("splits", "../up"),
            {
                "file": "../up.safetensors",
                "rows": 0,
                "sequences": 0,
                "sha256": "",
                "first_time_ns": None,
                "last_time_ns": None,
            },
            "a name is letters",
        ),
    ],
)
def test_a_wrong_card_is_refused(folder: Path, path: tuple, value: object, message: str) -> None:
    edit(folder, path, value)
    with pytest.raises(DatasetError) as caught:
        PreparedDataset.open(folder)
    assert message in str(caught.value)


def test_a_missing_or_broken_card_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no dataset\.json"):
        PreparedDataset.open(tmp_path / "nowhere")
    (folder / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="is no JSON"):
        PreparedDataset.open(folder)


def test_a_missing_split_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="has no split 'test'; it has train, judged"):
        PreparedDataset.open(folder).split("test")
    (folder / "judged.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"judged\.safetensors is missing: copy the data set"):
        PreparedDataset.open(folder)


def test_every_truncation_is_refused(folder: Path) -> None:
    path = folder / "train.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="is damaged or cut short"):
            PreparedDataset.open(folder)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_flipped_byte_is_found(folder: Path, data: st.DataObject) -> None:
    path = folder / "train.safetensors"
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        with pytest.raises(DatasetError, match="again"):
            PreparedDataset.open(folder, verify=True)
    finally:
        path.write_bytes(whole)


def test_reading_outside_a_split_is_an_error(folder: Path) -> None:
    split = PreparedDataset.open(folder).split("train")
    for start, stop in ((-1, 2), (5, 4), (0, 13)):
        with pytest.raises(IndexError):
            split.read(start, stop)


def test_the_digest_follows_the_rows_and_not_the_description(tmp_path: Path) -> None:
    digests = []
    for name, seed, changes in (
        ("x", 0, {}),
        ("y", 0, {"name": "other", "provenance": {}}),
        ("z", 1, {}),
    ):
        with writer(tmp_path / name, **changes) as out:
            out.append("train", entity=0, **columns(4, seed=seed))
        digests.append(PreparedDataset.open(tmp_path / name).card.digest)
    assert digests[0] == digests[1] != digests[2]


def test_writing_needs_little_memory(tmp_path: Path) -> None:
    """300 MB go through a process whose address space may grow by 100 MB."""
    code = """
import resource, sys, torch
from pathlib import Path
from typing import Any
from sma_core.dataset import DatasetWriter, NumericChannel
torch.set_num_threads(1)
chunk = torch.zeros(50_000, 100)
with DatasetWriter(Path(sys.argv[1]), name="n",
                   numeric=[NumericChannel(name=str(i)) for i in range(100)]) as out:
    out.append("train", entity=0, numeric=chunk, time=torch.arange(50_000))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
    for i in range(1, 15):
        time = torch.arange(50_000) + i * 50_000
        out.append("train", entity=0, numeric=chunk, time=time, continued=True)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)
    assert PreparedDataset.open(tmp_path / "data").split("train").rows == 750_000
