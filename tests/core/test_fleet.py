"""Each entity of a fleet gets what a stream of its own gives, whatever the others do."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.core.models import random_inputs, small_config, small_model
from tests.core.shapes import unchecked_shapes
from tests.slow import slow
from tests.tolerances import assert_close
from torch import Tensor

from sma_core import (
    ActiveEMAConfig,
    BudgetConfig,
    Fleet,
    FleetError,
    FullAttentionConfig,
    GRUConfig,
    HeadConfig,
    InputConfig,
    Inputs,
    LocalConvolutionConfig,
    PeriodicConfig,
    SequenceModel,
    ShapeError,
    State,
    StreamingError,
    TransformerConfig,
    build_model,
)

ENTITIES: tuple[str | int, ...] = ("pump", "fan", 3, 2**40, "Ω 7")
STEPS = 40
INPUTS = InputConfig(numeric=2)


@dataclass(frozen=True)
class Case:
    """A model, the events of every entity, and what one pass over each says."""

    model: SequenceModel
    numeric: Tensor
    expected: Tensor


@cache
def case(name: str) -> Case:
    if name == "transformer":
        torch.manual_seed(0)
        head = HeadConfig(kind="step_classification", outputs=3)
        sizes: dict[str, Any] = {"width": 8, "layers": 1, "heads": 2, "window": 3}
        model_config = TransformerConfig(inputs=INPUTS, head=head, hidden_width=8, **sizes)
        model = build_model(model_config).double().eval()
    elif name == "recurrent":
        torch.manual_seed(0)
        model_config = GRUConfig(inputs=INPUTS, head=HeadConfig(kind="forecast", outputs=2))
        model = build_model(model_config).double().eval()
    else:
        every = (
            LocalConvolutionConfig(kernel_size=3),
            FullAttentionConfig(heads=2, head_width=4, max_rows=5),
            ActiveEMAConfig(states=2),
        )
        fields: dict[str, Any] = {
            "windows and rotary positions": {"pool": 3},
            "positions of a table": {"pool": 2, "attention": {"position": "simple"}},
            "every other sub-module": {},
            "one class for all steps": {
                "head": HeadConfig(kind="sequence_classification", outputs=3)
            },
        }[name]
        model_config = small_config(inputs=INPUTS, **fields)
        if name == "every other sub-module":
            policy = BudgetConfig(rate=0.5, block=3, window=6)
            model_config = replace(model_config, pool=every, policy=policy)
        model = small_model(model_config)
    inputs = random_inputs(model.config, [STEPS] * len(ENTITIES))  # type: ignore[arg-type]
    assert inputs.numeric is not None
    with torch.no_grad():
        if model.config.head.kind == "sequence_classification":
            so_far = [model(Inputs(inputs.numeric[:, : t + 1])).prediction for t in range(STEPS)]
            return Case(model, inputs.numeric, torch.stack(so_far, dim=1))
        return Case(model, inputs.numeric, model(Inputs(inputs.numeric)).prediction)


NAMES = (
    "windows and rotary positions",
    "positions of a table",
    "every other sub-module",
    "one class for all steps",
    "transformer",
    "recurrent",
)


class Schedule(RuleBasedStateMachine):
    """Entities come, go and move at any time; the machine knows where each is in its events."""

    def __init__(self) -> None:
        super().__init__()
        self.around = ExitStack()
        self.around.enter_context(unchecked_shapes())
        # So that few entities move memory.
        self.around.enter_context(patch("sma_core.fleet.LEAST_CAPACITY", 1))

    def teardown(self) -> None:
        self.around.close()

    @initialize(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        self.case = case(name)
        self.fleet = Fleet(self.case.model)
        self.done = dict.fromkeys(ENTITIES, 0)
        self.parked: dict[str | int, State] = {}

    def some(self, data: st.DataObject, among: Sequence[str | int]) -> list[str | int]:
        if not among:
            return []
        return data.draw(st.lists(st.sampled_from(list(among)), unique=True, min_size=1))

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        outside = [entity for entity in ENTITIES if entity not in self.fleet]
        fresh = [e for e in self.some(data, outside) if e not in self.parked]
        self.fleet.admit(fresh)
        self.done |= dict.fromkeys(fresh, 0)
        for entity in [e for e in outside if e in self.parked]:
            if data.draw(st.booleans()):
                self.fleet.admit([entity], self.parked.pop(entity))

    @rule(data=st.data(), keep=st.booleans())
    def evict(self, data: st.DataObject, keep: bool) -> None:
        leaving = self.some(data, self.fleet.entities)
        state = self.fleet.evict(leaving)
        assert state.position.tolist() == [self.done[entity] for entity in leaving]
        for row, entity in enumerate(leaving):
            if keep:
                self.parked[entity] = state.select(torch.tensor([row]))

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(self.fleet.entities))
        self.fleet.reorder(order)
        assert self.fleet.entities == tuple(order)

    @rule(data=st.data(), everyone=st.booleans(), times=st.integers(1, 4))
    def step(self, data: st.DataObject, everyone: bool, times: int) -> None:
        whom = list(self.fleet.entities) if everyone else self.some(data, self.fleet.entities)
        for _ in range(times):
            if not whom or max(self.done[entity] for entity in whom) + 1 > STEPS:
                return
            outputs = self.fleet.step(self.events(whom, 1), None if everyone else whom)
            self.compare(outputs.prediction, whom, [1] * len(whom))

    @rule(data=st.data(), longest=st.integers(1, 6))
    def advance(self, data: st.DataObject, longest: int) -> None:
        whom = self.some(data, self.fleet.entities)
        if not whom or max(self.done[entity] for entity in whom) + longest > STEPS:
            return
        new = [data.draw(st.integers(0, longest)) for _ in whom]
        inputs = replace(self.events(whom, longest), lengths=torch.tensor(new))
        self.compare(self.fleet.advance(inputs, whom).prediction, whom, new)

    @rule()
    def save_and_load(self) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "fleet.safetensors"
            self.fleet.save(path)
            self.fleet = Fleet.load(path, self.case.model)

    @invariant()
    def everyone_is_where_they_should_be(self) -> None:
        fleet = self.fleet
        assert fleet.select(fleet.entities).position.tolist() == [
            self.done[entity] for entity in fleet.entities
        ]
        assert len(fleet) <= fleet.capacity

    def events(self, whom: list[str | int], steps: int) -> Inputs:
        rows = [(ENTITIES.index(entity), self.done[entity]) for entity in whom]
        return Inputs(torch.stack([self.case.numeric[e, t : t + steps] for e, t in rows]))

    def compare(self, prediction: Tensor, whom: list[str | int], new: list[int]) -> None:
        pooled = prediction.dim() == 2
        for row, (entity, steps) in enumerate(zip(whom, new, strict=True)):
            start, stop = self.done[entity], self.done[entity] + steps
            self.done[entity] = stop
            expected = self.case.expected[ENTITIES.index(entity), start:stop]
            if steps:
                got = prediction[row, None] if pooled else prediction[row, :steps]
                assert_close(got, expected[-1:] if pooled else expected, "float64")


TestSchedules = Schedule.TestCase
TestSchedules.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def small_fleet(entities: Sequence[str | int] = (), name: str = NAMES[0]) -> Fleet:
    fleet = Fleet(case(name).model)
    fleet.admit(entities)
    return fleet


def events(*rows: int, step: int = 0) -> Inputs:
    return Inputs(case(NAMES[0]).numeric[list(rows), step : step + 1])


def test_memory_follows_the_number_of_entities() -> None:
    fleet = small_fleet()
    least = fleet.nbytes
    for entity in range(100):
        fleet.admit([entity])
        assert len(fleet) <= fleet.capacity <= max(8, 2 * len(fleet))
    fleet.evict(range(3, 100))
    assert fleet.entities == (0, 1, 2)
    assert fleet.nbytes == least


def test_after_an_eviction_the_last_ones_fill_the_gaps() -> None:
    fleet = small_fleet(list("abcde"))
    for t in range(3):
        fleet.step(events(0, 1, 2, 3, 4, step=t))
    fleet.step(events(4, 3, step=3), ["e", "d"])
    gone = fleet.evict(["e", "a", "b"])
    assert gone.position.tolist() == [4, 3, 3]
    assert sorted(fleet.entities) == ["c", "d"]
    assert fleet.select(["c", "d"]).position.tolist() == [3, 4]
    expected = case(NAMES[0]).expected
    assert_close(fleet.step(events(2, step=3), ["c"]).prediction, expected[2:3, 3:4], "float64")
    assert_close(fleet.step(events(3, step=4), ["d"]).prediction, expected[3:4, 4:5], "float64")


def test_neighbours_are_stepped_where_they_lie() -> None:
    """A step for all, or for a run of neighbours, copies no state; others are copied."""
    fleet = small_fleet(["a", "b", "c"])
    with patch.object(State, "select", side_effect=AssertionError("copied")):
        fleet.step(events(0, 1, 2))
        fleet.step(events(1, 2, step=1), ["b", "c"])
        with pytest.raises(AssertionError, match="copied"):
            fleet.step(events(2, 1, step=2), ["c", "b"])
    assert fleet.select(["a", "b", "c"]).position.tolist() == [1, 2, 2]


def test_a_sub_module_may_replace_its_state_instead_of_writing_it() -> None:
    model = case(NAMES[0]).model
    plain = type(model).step

    def replacing_step(self: Any, inputs: Inputs, state: State) -> Any:
        moved = state.clone()
        outputs = plain(self, inputs, moved)
        state.position, state.layers = moved.position, moved.layers
        return outputs

    fleet = small_fleet(["a", "b"])
    with patch.object(type(model), "step", replacing_step):
        predictions = [fleet.step(events(0, 1, step=t)).prediction for t in range(4)]
    assert_close(torch.cat(predictions, 1), case(NAMES[0]).expected[:2, :4], "float64")


def test_a_fleet_made_in_inference_mode_outlives_it() -> None:
    with torch.inference_mode():
        fleet = small_fleet(["a", "b", "c"])
        fleet.step(events(0, 1, 2))
        fleet.reorder(["b", "c", "a"])
        state = fleet.evict(["a"])
    assert not any(tensor.is_inference() for tensor in state.tensors())
    fleet.admit(["a"], state)
    prediction = fleet.step(events(1, 2, 0, step=1)).prediction[:, 0]
    assert_close(prediction, case(NAMES[0]).expected[[1, 2, 0], 1], "float64")


def test_states_may_be_narrower_than_the_model() -> None:
    fleet = Fleet(case(NAMES[0]).model, dtype=torch.float32)
    fleet.admit(["a"])
    wide = small_fleet(["a"])
    assert fleet.nbytes < wide.nbytes
    with pytest.raises(ShapeError, match=r"state: .*must be .* torch.float64"):
        wide.admit(["b"], fleet.select(["a"]))


@slow
def test_a_hundred_thousand_steps_equal_one_pass(
    tmp_path: Path, unchecked_signatures: None
) -> None:
    """In float32; the ring wraps 223 times, others come and go, the fleet is saved and loaded."""
    model = small_model(
        small_config(
            layers=1,
            inputs=InputConfig(categorical=(16,)),
            policy=PeriodicConfig(stride=7),  # a learned router may flip at a rounding
            attention={"window": 63},
        ),
        dtype=torch.float32,
    )
    steps, apart = 100_000, 20_000
    symbols = torch.randint(16, (1, steps, 1), generator=torch.Generator().manual_seed(0))
    every = [Inputs(categorical=symbol) for symbol in symbols.split(1, dim=1)]
    with torch.no_grad():
        expected = model(Inputs(categorical=symbols)).prediction

    fleet = Fleet(model)
    fleet.admit(["stays"])
    predictions = []
    for start in range(0, steps, apart):
        predictions += [
            fleet.step(events).prediction for events in every[start : start + apart - 2]
        ]
        fleet.admit(["visitor", "guest"])
        fleet.reorder(["visitor", "stays", "guest"])
        for events in every[start + apart - 2 : start + apart]:
            shared = events.map(lambda tensor: tensor.expand(3, -1, -1))
            predictions.append(fleet.step(shared).prediction[1, None])
        fleet.evict(["visitor", "guest"])
        fleet.save(tmp_path / "fleet")
        fleet = Fleet.load(tmp_path / "fleet", model)
    assert fleet.select(["stays"]).position.tolist() == [steps]
    got = torch.cat(predictions, dim=1)
    assert_close(got, expected, "float32")
    assert_close(got[:, -500:], expected[:, -500:], "float32")


class TestRefused:
    @pytest.mark.parametrize("call", ["evict", "select", "reorder"])
    def test_who_is_not_here(self, call: str) -> None:
        fleet = small_fleet(["a"])
        with pytest.raises(FleetError, match="'b' is not here: admit it first"):
            getattr(fleet, call)(["b"])
        for run in (fleet.step, fleet.advance):
            with pytest.raises(FleetError, match="'b' is not here: admit it first"):
                run(events(0), ["b"])

    def test_who_is_here_already_or_named_twice(self) -> None:
        fleet = small_fleet(["a"])
        with pytest.raises(FleetError, match="'a' is here already: evict it first"):
            fleet.admit(["b", "a"])
        with pytest.raises(FleetError, match="'b' is named twice"):
            fleet.admit(["b", "b"])
        with pytest.raises(FleetError, match="'a' is named twice"):
            fleet.step(events(0, 0), ["a", "a"])
        assert fleet.entities == ("a",)

    def test_what_is_no_list_of_names(self) -> None:
        fleet = small_fleet()
        with pytest.raises(FleetError, match="a list of names, not the one name 'pump'"):
            fleet.admit("pump")

    def test_a_name_that_no_file_can_hold(self, unchecked_signatures: None) -> None:
        with pytest.raises(FleetError, match=r"a name is a str or an int, not 1\.5"):
            small_fleet().admit([1.5])  # type: ignore[list-item]

    def test_an_order_of_some(self) -> None:
        with pytest.raises(FleetError, match="names all 2 entities, not 1"):
            small_fleet(["a", "b"]).reorder(["a"])

    def test_a_bidirectional_model(self) -> None:
        model = small_model(small_config(bidirectional=True))
        with pytest.raises(StreamingError, match="bidirectional = false"):
            Fleet(model)

    def test_a_state_of_another_model_or_number(self) -> None:
        fleet = small_fleet(["a"])
        other = small_fleet(["b"], "every other sub-module").select(["b"])
        with pytest.raises(ShapeError, match=r"state: layers\.0\.policy\S* is too much"):
            fleet.admit(["b"], other)
        with pytest.raises(ShapeError, match=r"state: position must be \[2\] .*not \[1\]"):
            fleet.admit(["b", "c"], fleet.select(["a"]))
        assert fleet.entities == ("a",)

    def test_a_model_in_training_mode(self) -> None:
        model = small_model(small_config(inputs=INPUTS)).train()
        fleet = Fleet(model)
        fleet.admit(["a"])
        with pytest.raises(FleetError, match=r"call model\.eval\(\)"):
            fleet.advance(events(0))

    def test_what_is_refused_leaves_all_states_as_they_were(self) -> None:
        fleet = small_fleet(["a", "b", "c"])
        fleet.step(events(0, 1, 2))
        before = fleet.select(fleet.entities)
        for whom in (None, ["a", "b"], ["c", "a"]):
            for run in (fleet.step, fleet.advance):
                with pytest.raises(ShapeError):
                    run(events(0), whom)
        after = fleet.select(fleet.entities)
        for ours, kept in zip(after.tensors(), before.tensors(), strict=True):
            assert ours.equal(kept)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "new" / "fleet.safetensors"
        fleet = small_fleet(["a", 7])
        fleet.step(events(0, 1))
        fleet.save(path)
        return path

    def card(self, path: Path) -> dict[str, Any]:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["card"])

    def rewrite(self, path: Path, card: Any, change: Any = lambda tensors: tensors) -> None:
        save_file(change(load_file(path)), path, {"card": json.dumps(card)})

    def load(self, path: Path) -> Fleet:
        return Fleet.load(path, case(NAMES[0]).model)

    def test_is_one_safetensors_file_with_a_card(self, path: Path) -> None:
        card = self.card(path)
        assert (card["format"], card["version"]) == ("sma.fleet", 1)
        assert card["entities"] == ["a", 7]
        assert load_file(path)["position"].tolist() == [1, 1]
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert self.load(str(path)).entities == ("a", 7)  # type: ignore[arg-type]

    def test_nobody_is_a_fleet_too(self, tmp_path: Path) -> None:
        small_fleet().save(tmp_path / "empty")
        assert len(self.load(tmp_path / "empty")) == 0

    def test_a_save_that_fails_leaves_the_last_one(self, path: Path) -> None:
        fleet = self.load(path)
        fleet.step(events(0, 1, step=1))
        with (
            patch("os.fsync", side_effect=OSError("disk full")),
            pytest.raises(OSError, match="full"),
        ):
            fleet.save(path)
        assert self.load(path).select(["a"]).position.tolist() == [1]

    def test_is_refused_to_another_model(self, path: Path) -> None:
        wider = small_model(small_config(pool=3, inputs=INPUTS, states=4))
        with pytest.raises(FleetError, match="config: these are states of another model"):
            Fleet.load(path, wider)
        retrained = small_model(case(NAMES[0]).model.config, seed=1)  # type: ignore[arg-type]
        with pytest.raises(FleetError, match="weights: these are states of a model with other"):
            Fleet.load(path, retrained)

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(FleetError, match="there is no such file"):
            self.load(tmp_path / "nothing")

    def test_of_another_kind_or_version(self, path: Path) -> None:
        card = self.card(path)
        for wrong in (None, [], card | {"format": "sma.dataset"}):
            self.rewrite(path, wrong)
            with pytest.raises(FleetError, match=r"is no saved fleet: its format is not 'sma\.fle"):
                self.load(path)
        self.rewrite(path, card | {"version": 2})
        with pytest.raises(FleetError, match="is version 2 and this library reads version 1"):
            self.load(path)

    def test_damaged(self, path: Path) -> None:
        card, whole = self.card(path), path.read_bytes()
        path.write_bytes(whole[:-9])
        with pytest.raises(FleetError, match=r"is damaged .*: restore it from a copy"):
            self.load(path)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(FleetError, match="its states are not those of its card"):
            self.load(path)
        path.write_bytes(whole)
        self.rewrite(path, card, lambda tensors: {k: v[:1] for k, v in tensors.items()})
        with pytest.raises(FleetError, match="its states are not those of its card"):
            self.load(path)
        for field, wrong in (("dtype", "bfloat"), ("entities", None), ("entities", [[], {}])):
            path.write_bytes(whole)
            self.rewrite(path, card | {field: wrong})
            with pytest.raises(FleetError, match="its states are not those of its card"):
                self.load(path)
        self.rewrite(path, card | {"entities": ["a"]})
        with pytest.raises(FleetError, match="a state of this model for each of its 1 entities"):
            self.load(path)
