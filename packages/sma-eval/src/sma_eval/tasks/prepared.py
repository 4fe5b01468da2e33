"""A data set that somebody prepared: a company's own logs, or a public set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sma_core.config import HeadConfig, InputConfig
from sma_core.dataset import PreparedDataset
from sma_eval.errors import FieldError
from sma_eval.section import Section


class Prepared(Section, frozen=True):
    """A prepared data set, as ``sma-pilot`` or a `sma_core.DatasetWriter` leaves it."""

    kind: Literal["prepared"]
    dataset: Annotated[str, Field(min_length=1)]
    """Its folder, relative to the data folder."""
    head: Literal["forecast", "step_classification", "sequence_classification"]
    """What is learned from it."""
    test: Annotated[str, Field(min_length=1)] | None = None
    """Split that the table speaks of. None: validation, which also chose; a pilot's judged rows
    then stay unseen by every study before it."""

    @property
    def steps(self) -> None:
        """Its sequences may be cut anywhere."""
        return

    def describe(self, data: Path) -> tuple[InputConfig, HeadConfig]:
        """Say what the data holds and what is learned from it.

        Parameters
        ----------
        data
            Folder that the data set is relative to.

        Raises
        ------
        FieldError
            When it has not what the task asks for.
        DatasetError
            When it is absent or damaged.
        """
        dataset = PreparedDataset.open(data / self.dataset)
        self._require_splits(dataset)
        card = dataset.card
        inputs = InputConfig(
            numeric=len(card.numeric),
            categorical=tuple(len(channel.vocabulary) for channel in card.categorical),
        )
        outputs = len(card.numeric) if self.head == "forecast" else len(card.classes)
        if not outputs:
            lacking = "numeric channels" if self.head == "forecast" else "classes"
            raise FieldError(
                f"task.head: data set {self.dataset!r} has no {lacking} for {self.head}"
            )
        return inputs, HeadConfig(kind=self.head, outputs=outputs)

    def prepare(self, *, data: Path, cache: Path) -> PreparedDataset:
        """Open the data set; nothing is generated, and `cache` stays as it is.

        Raises
        ------
        DatasetError
            When it is absent or damaged.
        """
        return PreparedDataset.open(data / self.dataset)

    def _require_splits(self, dataset: PreparedDataset) -> None:
        wanted = {"train": "task.dataset", "validation": "task.dataset"}
        if self.test is not None:
            wanted[self.test] = "task.test"
        for split, field in wanted.items():
            if split not in dataset.card.splits:
                known = ", ".join(dataset.card.splits)
                raise FieldError(
                    f"{field}: {self.dataset!r} has no split {split!r}; it has {known}"
                )
