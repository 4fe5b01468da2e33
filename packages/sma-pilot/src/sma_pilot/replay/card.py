"""The replay's card, ``replay.json``: what was replayed, in which order, on what, and its figures.

It is written last, so a folder with a card is a finished replay. ``begun.json`` is written first:
it says which plan, data, models and machine the measurements beside it belong to.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sma_core.dataset import DatasetCard
from sma_pilot.errors import RunError
from sma_pilot.replay.timeline import Window

FORMAT = "sma.replay"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReplayCard:
    """Contents of ``replay.json``.

    Parameters
    ----------
    plan_digest : str
    order : list of str
        Legs in the order they ran: ``<arm>/offline``, ``<arm>/single_stream/<pass>``, and of a
        shadow stage ``candidate/paced``.
    legs : dict
        Figures by ``<arm>/<scenario>``; single-stream ones are over all passes.
    models : dict
        Fingerprint of each arm's model.
    dataset : dict
        Name, digest, entities and slices of the prepared data set.
    environment : dict
        Machine and software.
    window : dict or None
        The part of the judged slice that was replayed; None for all of it.
    """

    plan_digest: str
    order: list[str]
    legs: dict[str, dict[str, Any]]
    models: dict[str, str]
    dataset: dict[str, Any]
    environment: dict[str, Any]
    window: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def load(cls, path: Path) -> "ReplayCard":
        """Read a card.

        Raises
        ------
        RunError
            There is none, or it is damaged or of another version.
        """
        content = read_json(path)
        kind = (content.pop("format", None), content.pop("version", None))
        if kind != (FORMAT, VERSION):
            raise RunError(f"{path}: not a replay card of version {VERSION}; replay again")
        try:
            return cls(**content)
        except TypeError as error:
            raise RunError(f"{path}: damaged ({error}); delete its folder and replay") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; RunError when it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path.parent}: not a finished replay (no {path.name}); run it") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it and replay") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged; delete its folder and replay")
    return content


def describe_dataset(card: DatasetCard, entities: tuple[str, ...]) -> dict[str, Any]:
    """Return what a result says about the data it was reached on."""
    return {
        "name": card.name,
        "digest": card.digest,
        "period_ns": card.period_ns,
        "numeric": len(card.numeric),
        "categorical": len(card.categorical),
        "entities": list(entities),
        # Those that are told and judged; what else is learned by classes is the arms' own matter.
        "classes": list(card.classes) if card.provenance.get("classes") else [],
        "slices": {name: asdict(split) for name, split in card.splits.items()},
    }


def describe_window(window: Window, entities: tuple[str, ...]) -> dict[str, Any]:
    """Return what a card says about the rows that a look was taken on."""
    chosen = None if window.entities is None else [entities[i] for i in sorted(window.entities)]
    return {"since_ns": window.since_ns, "until_ns": window.until_ns, "entities": chosen}


def fingerprint(folder: Path) -> str:
    """SHA-256 of the files that make up a fitted arm.

    Raises
    ------
    RunError
        The folder holds none.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in (".json", ".safetensors"))
    if not files:
        raise RunError(f"{folder}: no fitted model here; run `sma-pilot fit` with the plan first")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
