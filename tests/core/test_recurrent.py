"""The recurrent incumbent: PyTorch's own GRU, and the same numbers in chunks and in steps."""

import pytest
import torch
from tests.core.test_baselines import cut, make_inputs
from tests.tolerances import assert_close

from sma_core import GRUConfig, GRUModel, HeadConfig, InputConfig, Inputs, build_model
from sma_core.config import HeadKind
from sma_core.model import SequenceModel


def recurrent(kind: HeadKind = "forecast", layers: int = 3, dropout: float = 0.0) -> SequenceModel:
    torch.manual_seed(0)
    config = GRUConfig(
        inputs=InputConfig(numeric=3, categorical=(4,)),
        head=HeadConfig(kind=kind, outputs=3),
        width=16,
        layers=layers,
        dropout=dropout,
    )
    return build_model(config).eval()


@torch.no_grad()
def test_the_layers_are_one_stacked_gru() -> None:
    model = recurrent()
    assert isinstance(model, GRUModel)
    stack = torch.nn.GRU(16, 16, num_layers=3, batch_first=True)
    for name, weight in stack.named_parameters():
        kind, layer = name.rsplit("_l", 1)
        weight.copy_(model.layers[int(layer)].get_parameter(f"{kind}_l0"))
    inputs = make_inputs(2, 11)
    expected = model.head(stack(model.embed(inputs))[0])
    assert_close(model(inputs).prediction, expected, "float32")


@pytest.mark.parametrize("kind", ["forecast", "sequence_classification"])
@pytest.mark.parametrize("cuts", [(23,), (1, 22), (2, 3, 5, 7, 6)])
@torch.no_grad()
def test_chunks_and_steps_equal_one_pass(kind: HeadKind, cuts: tuple[int, ...]) -> None:
    model, inputs = recurrent(kind), make_inputs(2, 23)
    whole = model(inputs).prediction
    chunked, stepped = model.init_state(2), model.init_state(2)
    start, pieces = 0, []
    for length in cuts:
        pieces.append(model(cut(inputs, start, start + length), chunked).prediction)
        start += length
    steps = [model.step(cut(inputs, t, t + 1), stepped).prediction for t in range(23)]
    if kind == "sequence_classification":
        assert_close(pieces[-1], whole, "float32")
        assert_close(steps[-1], whole, "float32")
    else:
        assert_close(torch.cat(pieces, dim=1), whole, "float32")
        assert_close(torch.cat(steps, dim=1), whole, "float32")
    for one, other in zip(chunked.tensors(), stepped.tensors(), strict=True):
        assert_close(one, other, "float32")


@torch.no_grad()
def test_rows_of_a_batch_may_end_at_different_steps() -> None:
    """Each goes on from its own last valid step, also one that had none in a chunk."""
    model, whole = recurrent(), make_inputs(3, 20)
    expected = model(whole).prediction
    state = model.init_state(3)
    assert whole.numeric is not None
    assert whole.categorical is not None
    for taken in ([4, 0, 9], [9, 9, 1], [1, 8, 9]):
        starts = state.position.tolist()
        rows = [torch.arange(start, start + 9).clamp_max(19) for start in starts]
        chunk = Inputs(
            torch.stack([whole.numeric[b, rows[b]] for b in range(3)]),
            torch.stack([whole.categorical[b, rows[b]] for b in range(3)]),
            torch.tensor(taken),
        )
        prediction = model(chunk, state).prediction
        for b, (start, count) in enumerate(zip(starts, taken, strict=True)):
            if count:
                assert_close(prediction[b, :count], expected[b, start : start + count], "float32")


def test_no_gradient_flows_from_one_chunk_to_the_one_before() -> None:
    model, inputs = recurrent(), make_inputs(1, 10)
    state = model.init_state(1)
    model(cut(inputs, 0, 5), state)
    assert not any(tensor.requires_grad for tensor in state.tensors())
    model(cut(inputs, 5, 10), state).prediction.sum().backward()


def test_dropout_lies_between_layers_alone() -> None:
    inputs = make_inputs(1, 6)
    alone = recurrent(layers=1, dropout=0.5).train()
    assert alone(inputs).prediction.equal(alone(inputs).prediction)
    stacked = recurrent(layers=2, dropout=0.5).train()
    assert not stacked(inputs).prediction.equal(stacked(inputs).prediction)
