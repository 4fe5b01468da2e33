"""Windows and batches: targets are the next row, cuts respect sequences, order follows the seed."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sma_core.config import HeadKind
from sma_core.dataset import (
    Batch,
    CategoricalChannel,
    DatasetWriter,
    NumericChannel,
    PreparedDataset,
    Split,
    WindowSampler,
    batches,
)
from sma_core.errors import DatasetError


def make_split(folder: Path, lengths: list[int], *, missing: bool = False) -> Split:
    """Channel 'sequence' holds the sequence's number, 'row' the row's number in the whole split."""
    with DatasetWriter(
        folder,
        name="numbered",
        numeric=[NumericChannel(name="sequence"), NumericChannel(name="row")],
        categorical=[CategoricalChannel(name="parity", vocabulary=("even", "odd"))],
        splits=["train"],
    ) as out:
        first = 0
        for sequence, length in enumerate(lengths):
            row = torch.arange(first, first + length)
            numeric = torch.stack([torch.full((length,), float(sequence)), row.float()], dim=1)
            if missing:
                numeric[1::3, 1] = torch.nan
                numeric[2::3] = torch.nan
            out.append(
                "train",
                entity=0,
                time=row,
                numeric=numeric,
                categorical=(row % 2).int()[:, None],
                target=torch.where(row % 5 == 0, -1, row % 4).int(),
                sequence_target=sequence - 1,
            )
            first += length
    return PreparedDataset.open(folder).split("train")


def sequences_and_rows(batch: Batch) -> list[tuple[int, list[int]]]:
    numeric = batch.inputs.numeric
    assert numeric is not None
    lengths = [numeric.shape[1]] * numeric.shape[0]
    if batch.inputs.lengths is not None:
        lengths = batch.inputs.lengths.tolist()
    return [
        (int(window[0, 0]), window[:length, 1].int().tolist())
        for window, length in zip(numeric, lengths, strict=True)
    ]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    window=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_forecast_target_is_the_next_row_of_the_same_sequence(
    tmp_path_factory: pytest.TempPathFactory, lengths, window: int, batch_size: int, epoch: int
) -> None:
    split = make_split(tmp_path_factory.mktemp("s") / "data", lengths)
    if max(lengths) == 1:
        with pytest.raises(DatasetError, match="no row to learn forecast from"):
            WindowSampler(split, "forecast", window=window, batch_size=batch_size)
        return
    found = 0
    for batch in batches(split, "forecast", window=window, batch_size=batch_size, epoch=epoch):
        assert len(batch.mask) <= batch_size
        for i, (sequence, rows) in enumerate(sequences_and_rows(batch)):
            found += 1
            assert 1 <= len(rows) <= window
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert split.sequences[sequence].start <= rows[0]
            assert rows[-1] + 1 < split.sequences[sequence].stop
            target = batch.target[i, : len(rows)]
            assert target[:, 0].tolist() == [float(sequence)] * len(rows)
            assert target[:, 1].int().tolist() == [row + 1 for row in rows]
            assert batch.mask[i].tolist() == [t < len(rows) for t in range(batch.mask.shape[1])]
            assert batch.target[i, len(rows) :].isnan().all()
    assert found == sum(-(-(length - 1) // window) for length in lengths)


def test_missing_values_are_masked_and_inputs_keep_them(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", [7], missing=True)
    (batch,) = batches(split, "forecast", window=16, batch_size=4)
    assert batch.inputs.numeric is not None
    # Rows 1 and 4 lack one channel of two, rows 2 and 5 both: only those have nothing to learn.
    assert batch.mask.tolist() == [[True, False, True, True, False, True]]
    assert batch.target[0, 0].isnan().tolist() == [False, True]
    assert batch.inputs.numeric[0, 1].isnan().tolist() == [False, True]


def test_step_classes_and_categories_stay_with_their_row(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", [30, 4])
    for batch in batches(split, "step_classification", window=8, batch_size=3):
        assert batch.inputs.categorical is not None
        for i, (_, rows) in enumerate(sequences_and_rows(batch)):
            expected = [-1 if row % 5 == 0 else row % 4 for row in rows]
            assert batch.target[i, : len(rows)].tolist() == expected
            assert (batch.target[i, len(rows) :] == -1).all()
            assert batch.mask[i].equal(batch.target[i] >= 0)
            assert batch.inputs.categorical[i, : len(rows), 0].tolist() == [r % 2 for r in rows]


def test_a_classified_sequence_is_never_cut(tmp_path: Path) -> None:
    lengths = [3, 30, 9]
    split = make_split(tmp_path / "data", lengths)
    seen = {}
    for batch in batches(split, "sequence_classification", window=8, batch_size=2):
        for i, (sequence, rows) in enumerate(sequences_and_rows(batch)):
            seen[sequence] = (len(rows), int(batch.target[i]))
            assert int(batch.mask[i].sum()) == len(rows)
    assert seen == {1: (30, 0), 2: (9, 1)}  # sequence 0 has class -1: nothing to learn


def test_the_order_follows_the_seed_and_changes_with_the_epoch(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", [50, 17, 3])

    def epoch_of(seed: int, epoch: int) -> list:
        found = batches(split, "forecast", window=6, batch_size=4, seed=seed, epoch=epoch)
        return [sequences_and_rows(batch) for batch in found]

    assert epoch_of(0, 0) == epoch_of(0, 0)
    assert epoch_of(0, 0) != epoch_of(1, 0)
    assert epoch_of(0, 0) != epoch_of(0, 1)


def test_any_batch_can_be_asked_for_directly(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", [50, 17, 3])
    straight = WindowSampler(split, "forecast", window=6, batch_size=4, seed=3)
    jumping = WindowSampler(split, "forecast", window=6, batch_size=4, seed=3)
    wanted = [sequences_and_rows(straight.batch(index)) for index in range(9)]
    for index in (8, 0, 5, 3):
        assert sequences_and_rows(jumping.batch(index)) == wanted[index]


@pytest.mark.parametrize("kind", ["forecast", "step_classification", "sequence_classification"])
@pytest.mark.parametrize("parts", [1, 3])
def test_fixed_batches_have_one_shape_and_the_same_windows(
    tmp_path: Path, kind: HeadKind, parts: int
) -> None:
    split = make_split(tmp_path / "data", [50, 17, 3])
    sampler = WindowSampler(split, kind, window=6, batch_size=4)
    shapes = set()
    for index in range(2 * sampler.batches_per_epoch):
        for part in range(parts):
            usual = sampler.batch(index, part=part, parts=parts)
            fixed = sampler.batch(index, part=part, parts=parts, fixed=True)
            shapes.add(fixed.mask.shape)
            rows, steps = usual.mask.shape
            assert fixed.mask[:rows, :steps].equal(usual.mask)
            assert fixed.mask.sum() == usual.mask.sum()
            assert fixed.inputs.lengths is not None
            assert fixed.inputs.lengths.sum() == sum(
                len(seen) for _, seen in sequences_and_rows(usual)
            )
            at = (slice(rows), slice(steps))[: usual.target.dim()]
            assert torch.equal(fixed.target[at].nan_to_num(), usual.target.nan_to_num())
    assert shapes == {(-(-4 // parts), sampler.longest)}


def test_every_row_is_seen_over_the_epochs(tmp_path: Path) -> None:
    split = make_split(tmp_path / "data", [23])
    seen = {
        row
        for epoch in range(60)
        for batch in batches(split, "forecast", window=5, batch_size=2, epoch=epoch)
        for _, rows in sequences_and_rows(batch)
        for row in rows
    }
    assert seen == set(range(22))


def test_windows_of_like_length_share_a_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 64, (400,), generator=generator).tolist()
    split = make_split(tmp_path / "data", lengths)
    padded = valid = 0
    for batch in batches(split, "forecast", window=64, batch_size=8):
        padded += batch.mask.numel()
        valid += int(batch.mask.sum())
    assert valid == sum(lengths) - len(lengths)
    assert padded < 1.2 * valid  # in random order it would be about 1.7


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("step_classification", "target"), ("sequence_classification", "sequence_target")],
)
def test_a_task_without_its_target_is_refused(tmp_path: Path, kind: HeadKind, missing: str) -> None:
    with DatasetWriter(tmp_path / "d", name="n", numeric=[NumericChannel(name="a")]) as out:
        out.append("train", entity=0, time=torch.arange(4), numeric=torch.zeros(4, 1))
    split = PreparedDataset.open(tmp_path / "d").split("train")
    with pytest.raises(DatasetError, match=f"needs the tensor '{missing}'"):
        WindowSampler(split, kind, window=4, batch_size=1)
