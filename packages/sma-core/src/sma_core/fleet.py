"""Many streams of one model: entities come and go, and all with an event now share one step.

The states of all entities lie in one batched `State`, a row each, without holes: a step for all of
them copies nothing. Who has which row is the business of this file alone; callers name entities.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sma_core.errors import FleetError, ShapeError
from sma_core.fleet_file import EntityId, read_fleet, write_fleet
from sma_core.inputs import Inputs
from sma_core.model import Outputs, SequenceModel
from sma_core.state import State

# Rows that are kept however few entities there are.
LEAST_CAPACITY = 8


class Fleet:
    """The states of entities that stream through one causal model.

    An entity that is stepped in company, evicted, admitted again, moved or saved and loaded gets
    the predictions of a stream of its own. Memory grows and shrinks by doubling: there are at most
    four times as many rows as entities, beyond the first few. Not for several threads at a time.

    Parameters
    ----------
    model : SequenceModel
        What predicts. Change its weights between steps and the states stay those of the old ones.
    device, dtype : optional
        Of the states; those of the model's weights by default. Recurrent sums stay in float32 at
        least.

    Raises
    ------
    StreamingError
        The model is bidirectional.

    Examples
    --------
    >>> fleet = Fleet(model)
    >>> fleet.admit(["pump-1", "pump-2", "fan-7"])
    >>> outputs = fleet.step(events, ["fan-7", "pump-1"])  # events of these two, in this order
    >>> fleet.save("streams.safetensors")
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        weight = model.head.weight
        self.model = model
        self.device = weight.device if device is None else torch.device(device)
        self.dtype = weight.dtype if dtype is None else dtype
        self._entities: list[EntityId] = []  # by row
        self._row: dict[EntityId, int] = {}
        self._state = self._fresh(LEAST_CAPACITY)
        # View of the rows in use, until these change, and its tensors as they were made.
        self._used: tuple[State, list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._entities)

    def __contains__(self, entity: EntityId) -> bool:
        return entity in self._row

    @property
    def entities(self) -> tuple[EntityId, ...]:
        """Who is here, in the order that a step for all of them takes.

        Newcomers come last. After an eviction the last entities move into the gaps.
        """
        return tuple(self._entities)

    @property
    def capacity(self) -> int:
        """Rows that memory is held for."""
        return self._state.batch

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, spare ones included."""
        return self._state.nbytes

    @torch.inference_mode(False)
    @torch.no_grad()
    def admit(self, entities: Sequence[EntityId], state: State | None = None) -> None:
        """Take in entities, before their first step or where a state left them.

        Parameters
        ----------
        entities : sequence of str or int
            Whom; none that is here already.
        state : State, optional
            A row for each, in this order: from `evict`, `select` or the model. It is copied.

        Raises
        ------
        FleetError
            An entity is here already, or is named twice.
        ShapeError
            The state is not one of this model and dtype for so many entities.
        """
        names = _checked(entities)
        for entity in names:
            if entity in self._row:
                raise FleetError(f"entities: {entity!r} is here already: evict it first")
        if state is None:
            state = self._fresh(len(names))
        else:
            self._check(state, len(names))
        before, after = len(self), len(self) + len(names)
        if after > self.capacity:
            self._resize(max(after, 2 * self.capacity))
        self._state.put(torch.arange(before, after), state.to(self.device))
        self._entities += names
        self._row |= {entity: row for row, entity in enumerate(names, start=before)}
        self._used = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def evict(self, entities: Sequence[EntityId]) -> State:
        """Let entities go.

        Returns
        -------
        State
            A row for each of them, in this order, to be admitted again or dropped.

        Raises
        ------
        FleetError
            An entity is not here, or is named twice.
        """
        rows = self._rows(entities)
        gone, stay = set(rows), len(self) - len(rows)
        state = self._state.select(_index(rows))
        holes = [row for row in rows if row < stay]
        last = [row for row in range(stay, len(self)) if row not in gone]
        self._state.put(_index(holes), self._state.select(_index(last)))
        for entity in entities:
            del self._row[entity]
        for hole, row in zip(holes, last, strict=True):
            self._entities[hole] = self._entities[row]
            self._row[self._entities[hole]] = hole
        del self._entities[stay:]
        self._used = None
        if stay <= self.capacity // 4 and self.capacity > LEAST_CAPACITY:
            self._resize(max(LEAST_CAPACITY, 2 * stay))
        return state

    @torch.inference_mode(False)
    def select(self, entities: Sequence[EntityId]) -> State:
        """Copy the states of entities, a row each, in this order.

        Raises
        ------
        FleetError
            An entity is not here, or is named twice.
        """
        return self._state.select(_index(self._rows(entities)))

    @torch.inference_mode(False)
    @torch.no_grad()
    def reorder(self, entities: Sequence[EntityId]) -> None:
        """Put all entities in this order: neighbours are stepped together without a copy.

        Raises
        ------
        FleetError
            Not every entity is named, or one twice, or one that is not here.
        """
        rows = self._rows(entities)
        if len(rows) != len(self):
            raise FleetError(f"entities: an order names all {len(self)} entities, not {len(rows)}")
        self._state.put(torch.arange(len(rows)), self._state.select(_index(rows)))
        self._entities = list(entities)
        self._row = {entity: row for row, entity in enumerate(entities)}

    def step(self, inputs: Inputs, entities: Sequence[EntityId] | None = None) -> Outputs:
        """Predict for one more step of each of these entities; time stands still for the others.

        Parameters
        ----------
        inputs : Inputs
            T = 1, no lengths, a row for each entity.
        entities : sequence of str or int, optional
            Whose events these are; by default those of all, in the order of `entities`. Rows that
            do not lie side by side, in this order, are copied there and back.

        Returns
        -------
        Outputs
            As of `SequenceModel.step`, in the order of the inputs.

        Raises
        ------
        FleetError
            An entity is not here, or is named twice.
        ShapeError
            The inputs do not fit the model or the entities. All states are as they were.
        """
        with torch.inference_mode(), self._lent(entities) as state:
            return self.model.step(inputs, state)

    def advance(self, inputs: Inputs, entities: Sequence[EntityId] | None = None) -> Outputs:
        """Predict for many steps at once, with the numbers of single ones: to catch up on a log.

        Parameters
        ----------
        inputs : Inputs
            A row for each entity; lengths say where fewer steps are new.
        entities : sequence of str or int, optional
            As in `step`.

        Returns
        -------
        Outputs
            As of `SequenceModel.forward`, without gradient.

        Raises
        ------
        FleetError
            An entity is not here, or is named twice, or the model is in training mode.
        ShapeError
            The inputs do not fit the model or the entities. All states are as they were.
        """
        if self.model.training:
            raise FleetError("model: is in training mode; call model.eval() before a stream")
        with torch.inference_mode(), self._lent(entities) as state:
            return self.model(inputs, state)

    def save(self, path: Path | str) -> None:
        """Write all entities and their states to one safetensors file, whole or not at all.

        Parameters
        ----------
        path : Path or str
            Replaced when there; its folder is made when absent.
        """
        state = self._state.narrow(0, len(self))
        write_fleet(Path(path), self.model, self._entities, state, self.dtype)

    @classmethod
    def load(
        cls, path: Path | str, model: SequenceModel, *, device: torch.device | str | None = None
    ) -> "Fleet":
        """Read a fleet back; each entity goes on where it was.

        Parameters
        ----------
        path : Path or str
            Written by `save`.
        model : SequenceModel
            The one that the states were made by, on any device.
        device : torch.device or str, optional
            Of the states; that of the model's weights by default.

        Raises
        ------
        FleetError
            The file is absent, damaged, of another version, or of another model or other weights.
        """
        saved = read_fleet(Path(path), model)
        fleet = cls(model, device=device, dtype=saved.dtype)
        state = fleet._fresh(len(saved.entities))
        expected = dict(state.named_tensors())
        if _kinds(expected) != _kinds(saved.tensors):
            raise FleetError(
                f"{path}: does not hold a state of this model for each of its "
                f"{len(saved.entities)} entities"
            )
        for name, tensor in expected.items():
            tensor.copy_(saved.tensors[name])
        fleet.admit(saved.entities, state)
        return fleet

    def _fresh(self, batch: int) -> State:
        return self.model.init_state(batch, device=self.device, dtype=self.dtype)

    def _rows(self, entities: Sequence[EntityId]) -> list[int]:
        names = _checked(entities)
        try:
            return [self._row[entity] for entity in names]
        except KeyError as error:
            raise FleetError(f"entities: {error.args[0]!r} is not here: admit it first") from None

    def _check(self, state: State, count: int) -> None:
        """Refuse a state whose tensors are not those of `count` entities of this model."""
        expected, given = dict(self._state.named_tensors()), dict(state.named_tensors())
        for name in sorted(expected.keys() ^ given.keys()):
            where = "too much" if name in given else "missing"
            raise ShapeError(f"state: {name} is {where}: it is a state of another model")
        for name, tensor in given.items():
            shape, dtype = [count, *expected[name].shape[1:]], expected[name].dtype
            if list(tensor.shape) != shape or tensor.dtype != dtype:
                raise ShapeError(
                    f"state: {name} must be {shape} {dtype} for {count} entities of this model, "
                    f"not {list(tensor.shape)} {tensor.dtype}"
                )

    def _resize(self, capacity: int) -> None:
        """Move to memory of another size."""
        kept = self._state.narrow(0, len(self))
        self._state = self._fresh(capacity)
        self._state.put(torch.arange(len(self)), kept)
        self._used = None

    @contextmanager
    def _lent(self, entities: Sequence[EntityId] | None) -> Iterator[State]:
        """State of these entities; what a step makes of it is theirs once the block is through."""
        if entities is None:
            state, lent = self._used or _view(self._state, 0, len(self))
        else:
            rows = self._rows(entities)
            if not rows or rows != list(range(rows[0], rows[0] + len(rows))):
                state = self._state.select(_index(rows))
                yield state
                self._state.put(_index(rows), state)
                return
            state, lent = _view(self._state, rows[0], len(rows))
        self._used = None  # if the block fails half way, its tree is not for another one
        yield state
        # A view is written where it lies, but a tensor may have been replaced instead of written.
        replaced = [
            pair for pair in zip(lent, state.tensors(), strict=True) if pair[0] is not pair[1]
        ]
        for ours, theirs in replaced:
            ours.copy_(theirs)
        if entities is None and not replaced:
            self._used = state, lent


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name what has to agree for one tensor to be copied to another."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _view(state: State, start: int, length: int) -> tuple[State, list[Tensor]]:
    """Take rows to be written to, and the tensors that hold them whatever becomes of the tree."""
    view = state.narrow(start, length)
    return view, list(view.tensors())


def _index(rows: list[int]) -> Tensor:
    """Make a tensor of row numbers, of integers also where there are none."""
    return torch.tensor(rows, dtype=torch.int64)


def _checked(entities: Sequence[EntityId]) -> list[EntityId]:
    """Copy the names, each of which may stand there once."""
    if isinstance(entities, str):
        raise FleetError(f"entities: must be a list of names, not the one name {entities!r}")
    names, seen = list(entities), set[EntityId]()
    for entity in names:
        if not isinstance(entity, str | int):
            raise FleetError(f"entities: a name is a str or an int, not {entity!r}")
        if entity in seen:
            raise FleetError(f"entities: {entity!r} is named twice")
        seen.add(entity)
    return names
