"""What a prediction may depend on: no later step, no padding, no other sequence of the batch."""

from dataclasses import replace

import pytest
import torch
from tests.core.models import piece, random_inputs, small_blocks, small_config, small_model
from tests.core.parity import reference_cases
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import (
    ArchitectureConfig,
    GRUConfig,
    Inputs,
    ModelConfig,
    RandomConfig,
    SequenceModel,
    SMAModel,
    TransformerConfig,
    build_model,
    dense_twin,
)

TRANSFORMER = TransformerConfig(
    inputs=small_config().inputs,
    head=small_config().head,
    width=8,
    layers=2,
    heads=2,
    hidden_width=8,
    window=3,
)
GRU = GRUConfig(inputs=small_config().inputs, head=small_config().head, width=8, layers=2)
CAUSAL: dict[str, ArchitectureConfig] = {
    **{name: config for name, config in reference_cases() if config.causal},
    "dense twin": dense_twin(small_config(pool=3)),
    "random policy": small_config(pool=3, policy=RandomConfig(rate=0.5)),
    "padded dispatch": small_config(pool=3, dispatch="padded"),
    "fft": small_config(pool=3, ema="fft"),
    "Transformer": TRANSFORMER,
    "GRU": GRU,
}
BIDIRECTIONAL: dict[str, ArchitectureConfig] = {
    name: config for name, config in reference_cases() if not config.causal
}
# A part of each; 5 divides no axis of the grid.
SOME = {
    **dict(list(CAUSAL.items())[:24:5]),
    **dict(list(CAUSAL.items())[24:]),
    **dict(list(BIDIRECTIONAL.items())[::5]),
}


def make_model(config: ArchitectureConfig) -> SequenceModel:
    if isinstance(config, ModelConfig):
        return small_model(config)
    torch.manual_seed(0)
    return build_model(config).double().eval()


def predict(model: SequenceModel, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Predictions and decisions."""
    with small_blocks(), torch.no_grad():
        outputs = model(inputs)
    return outputs.prediction, [decision.active for decision in outputs.decisions]


def with_tail(inputs: Inputs, starts: list[int], number: float, index: int) -> Inputs:
    """Steps from `starts` on replaced by a number and an index."""
    assert inputs.numeric is not None
    assert inputs.categorical is not None
    late = torch.arange(inputs.steps) >= torch.tensor(starts)[:, None]
    return replace(
        inputs,
        numeric=inputs.numeric.masked_fill(late[..., None], number),
        categorical=inputs.categorical.masked_fill(late[..., None], index),
    )


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("number", [1e3, float("nan")])
def test_the_future_changes_nothing_earlier(name: str, number: float) -> None:
    model = make_model(CAUSAL[name])
    inputs = replace(random_inputs(small_config(), [14, 14]), lengths=None)
    before, decided = predict(model, inputs)
    for now in (1, 6, 13):
        after, redecided = predict(model, with_tail(inputs, [now, now], number, 2))
        assert_close(after[:, :now], before[:, :now], "float64")
        assert not after[:, now].equal(before[:, now]), "the change itself went unnoticed"
        for a, b in zip(redecided, decided, strict=True):
            assert a[:, :now].equal(b[:, :now])


@pytest.mark.parametrize("name", CAUSAL)
def test_no_gradient_comes_from_the_future(name: str) -> None:
    model = make_model(CAUSAL[name])
    inputs = replace(random_inputs(small_config(), [14]), lengths=None)
    assert inputs.numeric is not None
    numeric = inputs.numeric.nan_to_num().requires_grad_()
    with small_blocks():
        model(replace(inputs, numeric=numeric)).prediction[0, 6].sum().backward()
    assert numeric.grad is not None
    assert numeric.grad[0, 6].any()
    if name == "fft":  # a transform mixes all steps: what is left is rounding
        later, own = numeric.grad[0, 7:].norm(), numeric.grad[0, :7].norm()
        assert_close(own + later, own, "float64")
    else:
        assert not numeric.grad[0, 7:].any()


def test_a_bidirectional_model_does_look_ahead() -> None:
    """Else the tests above would pass for want of a path, not for causality."""
    for config in BIDIRECTIONAL.values():
        model = make_model(config)
        inputs = replace(random_inputs(small_config(), [14]), lengths=None)
        before, _ = predict(model, inputs)
        after, _ = predict(model, with_tail(inputs, [13], 1e3, 2))
        assert not after[:, 0].equal(before[:, 0])


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_what_stands_in_padding_is_never_read(name: str, number: float) -> None:
    """Indices outside the vocabulary are no error there; gradients do not change either."""
    model, lengths = make_model(SOME[name]), [14, 9, 1, 0]
    inputs = random_inputs(small_config(), lengths)
    found = []
    for case in (inputs, with_tail(inputs, lengths, number, 99)):
        model.zero_grad()
        with small_blocks():
            outputs = model(case)
            valid = outputs.prediction[case.valid]
            valid.square().sum().backward()
        active = [decision.active for decision in outputs.decisions]
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([valid, *active, *gradients])
    assert found[0][0].isfinite().all()
    for a, b in zip(*found, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("name", SOME)
def test_a_sequence_does_not_depend_on_its_batch(name: str) -> None:
    """Alone and without padding, or among others in any order: the same predictions."""
    model, lengths = make_model(SOME[name]), [9, 14, 1, 5]
    inputs = random_inputs(small_config(), lengths)
    together, decided = predict(model, inputs)
    order = torch.tensor([2, 3, 0, 1])
    shuffled, _ = predict(model, inputs.map(lambda tensor: tensor[order]))
    for b, length in enumerate(lengths):
        alone = piece(inputs.map(lambda t, b=b: t[b : b + 1]), 0, length)
        prediction, alone_decided = predict(model, replace(alone, lengths=None))
        assert_close(together[b, :length], prediction[0], "float64")
        place = order.tolist().index(b)
        assert_close(shuffled[place, :length], prediction[0], "float64")
        for a, c in zip(alone_decided, decided, strict=True):
            assert a[0].equal(c[b, :length])


@pytest.mark.parametrize("name", SOME)
def test_more_padding_changes_nothing(name: str) -> None:
    model, lengths = make_model(SOME[name]), [9, 5]
    inputs = random_inputs(small_config(), lengths)

    def longer(tensor: Tensor) -> Tensor:
        return torch.cat((tensor, tensor.new_ones(2, 8, tensor.shape[2])), dim=1)

    assert inputs.numeric is not None
    assert inputs.categorical is not None
    padded = Inputs(longer(inputs.numeric), longer(inputs.categorical), inputs.lengths)
    before, after = (predict(model, case)[0] for case in (inputs, padded))
    for b, length in enumerate(lengths):
        assert_close(after[b, :length], before[b, :length], "float64")


@pytest.mark.parametrize("name", [name for name in SOME if name in CAUSAL])
def test_padding_does_not_enter_a_state(name: str) -> None:
    model, lengths = make_model(SOME[name]), [14, 9, 0]
    inputs = random_inputs(small_config(), lengths)
    states = []
    for case in (inputs, with_tail(inputs, lengths, float("nan"), 99)):
        states.append(model.init_state(3))
        with torch.no_grad(), small_blocks():
            model(case, states[-1])
    for a, b in zip(*(state.tensors() for state in states), strict=True):
        assert a.equal(b)
    assert states[0].position.tolist() == lengths
    untouched = model.init_state(1)
    for a, b in zip(
        states[0].select(torch.tensor([2])).tensors(), untouched.tensors(), strict=True
    ):
        if isinstance(model, SMAModel):
            assert a.equal(b), "a sequence without a step leaves its state as it was"
