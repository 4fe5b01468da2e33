"""Steps, chunks and one pass give the same numbers, and a state is a constant number of bytes."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.models import piece, random_inputs, small_blocks, small_config, small_model
from tests.core.parity import against_fast, reference_cases, run_chunks, run_steps
from tests.core.shapes import unchecked_shapes
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor

from sma_core import (
    AlwaysConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    ShapeError,
    SMAModel,
    State,
    StreamingError,
)

CAUSAL = {name: config for name, config in reference_cases() if config.causal}
WAYS = pytest.mark.parametrize("way", [run_chunks, run_steps])
POSITIONS = pytest.mark.parametrize("position", ["rotary", "simple", "local"])


def without_lengths(inputs: Inputs) -> Inputs:
    return replace(inputs, lengths=None)


def one_step(inputs: Inputs, t: int) -> Inputs:
    return without_lengths(piece(inputs, t, t + 1))


def steps(model: SMAModel, inputs: Inputs, state: State, start: int, stop: int) -> Tensor:
    """Predictions of steps start..stop, one at a time."""
    with unchecked_shapes():
        parts = [model.step(one_step(inputs, t), state).prediction for t in range(start, stop)]
    return torch.cat(parts, dim=1)


@WAYS
@pytest.mark.parametrize("name", CAUSAL)
def test_every_configuration(name: str, way) -> None:
    assert against_fast(CAUSAL[name], way, torch.float64) <= TOLERANCES["float64"].relative


@WAYS
@pytest.mark.parametrize("name", list(CAUSAL)[::5])
def test_float32(name: str, way) -> None:
    assert against_fast(CAUSAL[name], way, torch.float32) <= TOLERANCES["float32"].relative


@WAYS
@pytest.mark.parametrize(
    "policy",
    [AlwaysConfig(), NeverConfig(), PeriodicConfig(stride=3), RandomConfig(rate=0.4, seed=7)],
    ids=lambda policy: policy.kind,
)
def test_every_policy(policy: PolicyConfig, way) -> None:
    config = small_config(pool=3, policy=policy)
    assert against_fast(config, way, torch.float64) <= TOLERANCES["float64"].relative


@pytest.mark.parametrize("change", [{"dispatch": "padded"}, {"ema": "fft"}], ids=str)
def test_chunks_in_other_layouts(change: dict[str, str]) -> None:
    config = replace(small_config(pool=3), **change)  # type: ignore[arg-type]
    assert against_fast(config, run_chunks, torch.float64) <= TOLERANCES["float64"].relative


@WAYS
def test_decisions_are_those_of_one_pass(way) -> None:
    config = small_config(pool=3)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [14, 14]))
    expected = [decision.active for decision in model(inputs).decisions]
    state = model.init_state(2)
    bounds = range(14) if way is run_steps else [0, 5, 6, 11]
    run = model.step if way is run_steps else model
    outputs = [
        run(without_lengths(piece(inputs, a, b)), state)
        for a, b in zip(bounds, [*bounds[1:], 14], strict=True)
    ]
    for layer, active in enumerate(expected):
        assert torch.cat([o.decisions[layer].active for o in outputs], dim=1).equal(active)


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_class_for_all_steps_so_far(steps_per_call: int) -> None:
    config = small_config(head=HeadConfig(kind="sequence_classification", outputs=3))
    model, inputs = small_model(config), without_lengths(random_inputs(config, [15, 15]))
    state = model.init_state(2)
    run = model.step if steps_per_call == 1 else model
    for t in range(0, 15, steps_per_call):
        got = run(without_lengths(piece(inputs, t, t + steps_per_call)), state).prediction
        so_far = model(without_lengths(piece(inputs, 0, t + steps_per_call))).prediction
        assert_close(got, so_far, "float64")


@POSITIONS
@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5
    ),
    window=st.integers(1, 6),
)
def test_sequences_of_a_batch_may_advance_at_their_own_pace(
    position: str, counts: list[tuple[int, int, int]], window: int
) -> None:
    """Each chunk has lengths of its own, zero among them; steps follow where chunks ended."""
    config = small_config(pool=2, layers=1, attention={"position": position, "window": window})
    model = small_model(config)
    totals = [sum(count) for count in zip(*counts, strict=True)]
    inputs = random_inputs(config, [total + 2 for total in totals])
    expected = model(inputs).prediction
    state, done = model.init_state(3), [0, 0, 0]

    def rows(length: int) -> Inputs:
        """The next steps of each sequence; what lies beyond its end repeats the last one."""
        at = [(torch.arange(length) + n).clamp_max(inputs.steps - 1) for n in done]
        assert inputs.numeric is not None
        assert inputs.categorical is not None
        numeric = torch.stack([inputs.numeric[b, a] for b, a in enumerate(at)])
        categorical = torch.stack([inputs.categorical[b, a] for b, a in enumerate(at)])
        return Inputs(numeric, categorical)

    with unchecked_shapes(), small_blocks(), torch.no_grad():
        for count in counts:
            chunk = replace(rows(6), lengths=torch.tensor(count))
            prediction = model(chunk, state).prediction
            for b, n in enumerate(count):
                assert_close(prediction[b, :n], expected[b, done[b] : done[b] + n], "float64")
                done[b] += n
        assert state.position.tolist() == totals
        for _ in range(2):
            prediction = model.step(rows(1), state).prediction[:, 0]
            assert_close(prediction, expected[range(3), done], "float64")
            done = [n + 1 for n in done]


@POSITIONS
@pytest.mark.parametrize("score", ["softmax", "relu2"])
def test_thousands_of_steps_beyond_the_window(position: str, score: str) -> None:
    """In chunks for 2,700 steps, then one at a time; the last steps equal one pass."""
    attention = {"position": position, "score": score, "window": 5}
    config = small_config(layers=1, attention=attention)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [3000]))
    with torch.no_grad():
        expected = model(inputs).prediction
        state = model.init_state(1)
        size = state.nbytes
        for start in range(0, 2700, 300):
            model(without_lengths(piece(inputs, start, start + 300)), state)
            assert state.nbytes == size
    got = steps(model, inputs, state, 2700, 3000)
    assert state.nbytes == size
    assert state.position.tolist() == [3000]
    assert_close(got, expected[:, 2700:], "float64")
    assert_close(got[:, -1], expected[:, -1], "float64")


def test_steps_alone_from_the_first() -> None:
    config = small_config(layers=1, pool=2, attention={"window": 5})
    model, inputs = small_model(config), without_lengths(random_inputs(config, [1500]))
    state = model.init_state(1)
    size = state.nbytes
    got = steps(model, inputs, state, 0, 1500)
    assert state.nbytes == size
    with torch.no_grad():
        assert_close(got, model(inputs).prediction, "float64")


@pytest.mark.parametrize("position", ["rotary", "simple"])
def test_a_stream_keeps_its_precision_however_long_it_runs(position: str) -> None:
    """Positions enter as distances, so the step count may not matter, in float32 neither."""
    config = small_config(attention={"position": position})
    model = small_model(config, dtype=torch.float32)
    inputs = random_inputs(config, [12], dtype=torch.float32)
    fresh, old, chunked = (model.init_state(1) for _ in range(3))
    for state in (old, chunked):
        state.position.add_(600_000_001)
    expected = steps(model, inputs, fresh, 0, 12)
    assert_close(steps(model, inputs, old, 0, 12), expected, "float32")
    assert_close(model(without_lengths(inputs), chunked).prediction, expected, "float32")


def test_states_are_selected_reordered_and_repeated() -> None:
    config = small_config(pool=3)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [14, 14, 14]))
    state = model.init_state(3)
    steps(model, inputs, state, 0, 8)
    order = torch.tensor([2, 0, 2, 1])
    chosen, before = state.select(order), state.clone()
    moved = inputs.map(lambda tensor: tensor[order])
    got = steps(model, moved, chosen, 8, 14)
    assert_close(got, model(inputs).prediction[order, 8:], "float64")
    # Neither copy shares memory with the state it came from.
    for ours, kept in zip(state.tensors(), before.tensors(), strict=True):
        assert ours.equal(kept)
    assert_close(steps(model, inputs, state, 8, 14), model(inputs).prediction[:, 8:], "float64")
    # The clone is where the original was, not where it went.
    assert before.position.tolist() == [8, 8, 8]
    again = steps(model, inputs, before, 8, 14)
    assert_close(again, model(inputs).prediction[:, 8:], "float64")


def test_some_sequences_run_a_sub_module_and_others_do_not() -> None:
    """The step gathers the sequences that run: a batch must mix both for that to be tried."""
    config = small_config(pool=3)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [14] * 4))
    active = torch.stack([decision.active for decision in model(inputs).decisions])
    mixed = active.any(1) & ~active.all(1)
    assert mixed.any(dim=1).all(), "every sub-module of every layer needs a mixed step"
    got = steps(model, inputs, model.init_state(4), 0, 14)
    assert_close(got, model(inputs).prediction, "float64")


class TestChangedWeights:
    """The step keeps the EMA's coefficients; they must follow the weights, however those change."""

    @pytest.fixture
    def model(self) -> SMAModel:
        return small_model(small_config(layers=1, policy=NeverConfig()))

    @pytest.fixture
    def inputs(self) -> Inputs:
        return without_lengths(random_inputs(small_config(), [6]))

    def assert_current(self, model: SMAModel, inputs: Inputs) -> None:
        got = steps(model, inputs, model.init_state(1), 0, 6)
        assert_close(got, model(inputs).prediction, "float64")

    def test_in_place(self, model: SMAModel, inputs: Inputs) -> None:
        state = model.init_state(1)
        model.step(one_step(inputs, 0), state)
        with torch.no_grad():
            model.layers[0].ema.gamma.mul_(-1)  # type: ignore[union-attr]
        twin = copy.deepcopy(model)
        after = model.step(one_step(inputs, 1), state).prediction
        whole = model.init_state(1)
        twin(one_step(inputs, 0), whole)
        assert_close(after, twin(one_step(inputs, 1), whole).prediction, "float64")

    def test_loaded(self, model: SMAModel, inputs: Inputs) -> None:
        self.assert_current(model, inputs)
        model.load_state_dict({k: -0.5 * v for k, v in model.state_dict().items()})
        self.assert_current(model, inputs)

    def test_cast(self, model: SMAModel, inputs: Inputs) -> None:
        self.assert_current(model.float().double(), inputs)

    def test_behind_the_back_of_autograd(self, model: SMAModel, inputs: Inputs) -> None:
        """`data` changes no version: a new state is where such a change is taken up."""
        self.assert_current(model, inputs)
        model.layers[0].ema.delta.data.add_(1)  # type: ignore[union-attr]
        self.assert_current(model, inputs)

    def test_made_under_inference_mode(self, inputs: Inputs) -> None:
        with torch.inference_mode():
            model = small_model(small_config(layers=1, policy=NeverConfig()))
            self.assert_current(model, inputs)


def test_a_state_outlives_inference_mode() -> None:
    """Made and moved inside, used for training outside."""
    config = small_config(pool=3)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [14, 14]))
    with torch.inference_mode():
        state = model.init_state(2)
        model.step(one_step(inputs, 0), state)
    steps(model, inputs, state, 1, 5)
    prediction = model(without_lengths(piece(inputs, 5, 14)), state).prediction
    assert_close(prediction, model(inputs).prediction[:, 5:], "float64")
    prediction.sum().backward()


def test_no_gradient_flows_from_one_chunk_to_the_one_before() -> None:
    config = small_config(pool=3, head=HeadConfig(kind="sequence_classification", outputs=3))
    model, inputs = small_model(config), without_lengths(random_inputs(config, [14, 14]))
    state = model.init_state(2)
    for start in (0, 7):
        model(without_lengths(piece(inputs, start, start + 7)), state).prediction.sum().backward()
        assert not any(tensor.requires_grad for tensor in state.tensors())


def test_a_step_has_no_gradient() -> None:
    config = small_config()
    model, inputs = small_model(config), random_inputs(config, [1])
    assert not model.step(without_lengths(inputs), model.init_state(1)).prediction.requires_grad


def test_a_step_ignores_dropout() -> None:
    config = small_config(pool=3, dropout=0.5)
    model, inputs = small_model(config), without_lengths(random_inputs(config, [8]))
    expected = model(inputs).prediction
    got = steps(model.train(), inputs, model.init_state(1), 0, 8)
    assert_close(got, expected, "float64")


class TestRefused:
    CONFIG = small_config()

    @pytest.fixture
    def inputs(self) -> Inputs:
        return random_inputs(self.CONFIG, [3, 3])

    @pytest.mark.parametrize("call", ["init_state", "forward", "step"])
    def test_a_bidirectional_model(self, call: str, inputs: Inputs) -> None:
        config: ModelConfig = replace(self.CONFIG, bidirectional=True)
        model, state = small_model(config), small_model(self.CONFIG).init_state(2)
        calls = {
            "init_state": lambda: model.init_state(2),
            "forward": lambda: model(inputs, state),
            "step": lambda: model.step(one_step(inputs, 0), state),
        }
        with pytest.raises(StreamingError, match="bidirectional = false"):
            calls[call]()

    def test_a_state_of_another_batch(self, inputs: Inputs) -> None:
        model = small_model(self.CONFIG)
        for run in (model, model.step):
            with pytest.raises(ShapeError, match=r"state: made for 3 sequences .* hold 2"):
                run(one_step(inputs, 0), model.init_state(3))

    def test_several_steps_or_lengths_in_a_step(self, inputs: Inputs) -> None:
        model = small_model(self.CONFIG)
        for wrong in (without_lengths(inputs), piece(inputs, 0, 1)):
            with pytest.raises(ShapeError, match="step takes one time step and no lengths"):
                model.step(wrong, model.init_state(2))

    def test_what_is_refused_leaves_the_state_as_it_was(self, inputs: Inputs) -> None:
        model = small_model(self.CONFIG)
        state = model.init_state(2)
        steps(model, inputs, state, 0, 2)
        before = state.clone()
        bad = Inputs(torch.zeros(2, 1, 5), torch.zeros(2, 1, 1, dtype=torch.int64))
        outside = replace(one_step(inputs, 0), categorical=torch.full((2, 1, 1), 3))
        for wrong in (bad, outside):
            for run in (model, model.step):
                with pytest.raises(ShapeError):
                    run(wrong, state)
        for ours, kept in zip(state.tensors(), before.tensors(), strict=True):
            assert ours.equal(kept)


def test_a_state_holds_what_the_windows_need_and_no_more() -> None:
    config = small_config(pool=3, inputs=InputConfig(numeric=2), layers=2)
    model = small_model(config, dtype=torch.float32)
    ema = 8 * 3 * 4
    rings = (4 * (4 + 6) * 4 + 4 * 8 + 8) + (3 * (6 + 4) * 4 + 3 * 8 + 8)
    assert model.init_state(5).nbytes == 5 * (8 + 2 * (ema + rings))
