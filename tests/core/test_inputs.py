"""Batches: checked where they enter, embedded as the equations say."""

from typing import Any

import pytest
import torch
from tests.tolerances import assert_close

from sma_core import InputConfig, Inputs, ShapeError
from sma_core.embedding import Embedding, masked_sum

NUMERIC = torch.zeros(2, 5, 3)
CATEGORICAL = torch.zeros(2, 5, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "numeric, categorical: at least one"),
        ({"numeric": [[1.0]]}, "numeric: must be a tensor, not list"),
        ({"numeric": torch.zeros(2, 5)}, r"numeric: must have 3 axes, has shape \[2, 5\]"),
        ({"numeric": CATEGORICAL}, "numeric: must be floating point, not torch.int64"),
        ({"numeric": torch.zeros(2, 5, 3, dtype=torch.complex64)}, "numeric: must be floating"),
        ({"numeric": torch.zeros(2, 0, 3)}, "numeric: needs at least one time step"),
        ({"categorical": torch.zeros(2, 5, 1)}, "categorical: must be an integer type"),
        ({"categorical": torch.zeros(2, 5, 1).bool()}, "categorical: must be an integer type"),
        ({"numeric": NUMERIC, "categorical": CATEGORICAL[:1]}, "categorical: batch, time and"),
        ({"numeric": NUMERIC, "categorical": CATEGORICAL[:, :4]}, "categorical: batch, time and"),
        (
            {"numeric": NUMERIC, "categorical": CATEGORICAL.to("meta")},
            "categorical: batch, time and device .* on meta differ",
        ),
        ({"numeric": NUMERIC, "lengths": torch.tensor(5)}, "lengths: must have 1 axes"),
        ({"numeric": NUMERIC, "lengths": torch.tensor([5.0, 5.0])}, "lengths: must be an integer"),
        ({"numeric": NUMERIC, "lengths": torch.tensor([5])}, r"lengths: must be \[2\] on cpu"),
        ({"numeric": NUMERIC, "lengths": torch.tensor([5, 6])}, r"lengths: must lie in 0\.\.5"),
        ({"numeric": NUMERIC, "lengths": torch.tensor([-1, 5])}, r"lengths: must lie in 0\.\.5"),
    ],
)
def test_a_wrong_batch_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        Inputs(**fields)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Inputs(NUMERIC), "categorical: the model takes 1 channels, none given"),
        (Inputs(None, CATEGORICAL), "numeric: the model takes 3 channels, none given"),
        (Inputs(NUMERIC[..., :2], CATEGORICAL), r"numeric: the model takes 3 channels, has shape"),
        (Inputs(NUMERIC, CATEGORICAL.expand(-1, -1, 2)), "categorical: the model takes 1 channels"),
    ],
)
def test_channels_must_be_the_models(inputs: Inputs, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        Embedding(InputConfig(numeric=3, categorical=(4,)), 8)(inputs)


def test_channels_that_a_model_does_not_take_are_refused() -> None:
    with pytest.raises(ShapeError, match="numeric: the model takes 0 channels"):
        Embedding(InputConfig(categorical=(4,)), 8)(Inputs(NUMERIC, CATEGORICAL))


@pytest.mark.parametrize("index", [-1, 4, 10**9])
def test_an_index_outside_its_vocabulary_is_refused(index: int) -> None:
    embed = Embedding(InputConfig(categorical=(9, 4)), 8)
    with pytest.raises(ShapeError, match=r"an index of channel 1 lies outside 0\.\.3"):
        embed(Inputs(None, torch.tensor([[[0, index]]])))


def test_what_a_batch_says_of_itself() -> None:
    inputs = Inputs(NUMERIC, CATEGORICAL, torch.tensor([0, 3]))
    assert (inputs.batch, inputs.steps, inputs.device.type) == (2, 5, "cpu")
    assert inputs.valid is not None
    assert inputs.valid.int().tolist() == [[0] * 5, [1, 1, 1, 0, 0]]
    assert Inputs(NUMERIC).valid is None
    assert Inputs(None, CATEGORICAL).steps == 5
    moved = inputs.to("meta")
    assert moved.device.type == "meta"
    assert moved.lengths is not None
    assert moved.lengths.device.type == "meta"


def test_the_embedding_is_a_sum_over_channels() -> None:
    """Missing values enter as 0 with their indicator at 1."""
    embed = Embedding(InputConfig(numeric=2, categorical=(3, 4)), 5).double()
    torch.nn.init.normal_(embed.numeric.bias)  # type: ignore[union-attr]
    nan, inf = float("nan"), float("inf")
    numeric = torch.tensor([[[1.5, -2.0], [nan, 3.0], [inf, -inf], [1e30, -2e15], [1e15, 0.0]]])
    known = torch.tensor([[1.5, -2.0], [0.0, 3.0], [0.0, 0.0], [0.0, 0.0], [1e15, 0.0]])
    missing = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 1], [0, 0]])
    categorical = torch.tensor([[[0, 3], [2, 0], [1, 1], [0, 0], [2, 2]]])
    got = embed(Inputs(numeric.double(), categorical))
    weight, bias = embed.numeric.weight, embed.numeric.bias  # type: ignore[union-attr]
    expected = torch.cat((known, missing), dim=-1).double() @ weight.T + bias
    for channel, table in enumerate(embed.categorical):
        expected = expected + table.weight[categorical[0, :, channel]]  # type: ignore[index,operator]
    for t in range(5):  # the large one would hide differences of the others
        assert_close(got[0, t], expected[t], "float64")


@pytest.mark.parametrize("number", [5.0, float("nan"), float("inf")])
def test_padded_steps_are_embedded_as_zeros(number: float) -> None:
    embed = Embedding(InputConfig(numeric=2, categorical=(4,)), 8)
    lengths = torch.tensor([1, 3])
    clean = Inputs(torch.zeros(2, 3, 2), torch.zeros(2, 3, 1, dtype=torch.int64), lengths)
    late = ~clean.valid[..., None]  # type: ignore[index,operator]
    dirty = Inputs(
        clean.numeric.masked_fill(late, number),  # type: ignore[union-attr]
        clean.categorical.masked_fill(late, 99),  # type: ignore[union-attr]
        lengths,
    )
    assert embed(dirty, dirty.valid).equal(embed(clean, clean.valid))


def test_missing_values_have_no_gradient() -> None:
    embed = Embedding(InputConfig(numeric=1), 4)
    numeric = torch.tensor([[[1.0], [float("nan")], [float("inf")], [1e30]]], requires_grad=True)
    embed(Inputs(numeric)).sum().backward()
    assert numeric.grad is not None
    assert (numeric.grad != 0).flatten().tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_indices_of_any_integer_type(dtype: torch.dtype) -> None:
    embed = Embedding(InputConfig(categorical=(4,)), 8)
    indices = torch.tensor([[[3], [0], [1]]])
    lengths = torch.tensor([2])
    expected = embed(Inputs(None, indices, lengths))
    assert embed(Inputs(None, indices.to(dtype), lengths.to(dtype))).equal(expected)


def test_numbers_of_any_floating_type() -> None:
    """A float64 log may hold what float32 cannot: it becomes infinite, so it is missing."""
    embed = Embedding(InputConfig(numeric=1), 8)
    wide = torch.tensor([[[0.5], [1e300]]], dtype=torch.float64)
    narrow = torch.tensor([[[0.5], [float("nan")]]])
    assert embed(Inputs(wide)).equal(embed(Inputs(narrow)))


def test_start_values_keep_the_variance_near_one() -> None:
    torch.manual_seed(0)
    embed = Embedding(InputConfig(numeric=20, categorical=(50,)), 256)
    inputs = Inputs(torch.randn(4, 500, 20), torch.randint(50, (4, 500, 1)))
    assert embed(inputs).var().item() == pytest.approx(1, rel=0.1)


def test_sums_leave_padding_out() -> None:
    x = torch.tensor([[[1.0], [2.0], [float("nan")]], [[4.0], [8.0], [16.0]]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert masked_sum(x, valid).tolist() == [[3.0], [28.0]]
    assert masked_sum(x[1:], None).tolist() == [[28.0]]
    assert masked_sum(x[1:].bfloat16(), None).dtype == torch.float32
