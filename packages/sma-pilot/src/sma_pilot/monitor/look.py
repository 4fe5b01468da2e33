"""The card of a look after a go, and the chain that the looks of a run make.

A look is a folder, ``monitor/look-NUMBER-HASH``: it appears whole or not at all. ``look.json``
in it holds the hash of each file beside it and that of the card before; the folder's name holds
the first digits of the card's own. So a change of any of them shows, as one of a decision does.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, ConfigDict, ValidationError

from sma_core.files import sha256_of
from sma_pilot.chained import ChainedRecord
from sma_pilot.errors import RunError
from sma_pilot.monitor.finding import Finding
from sma_pilot.monitor.recommendation import Recommendation
from sma_pilot.run_folder import RunFolder

CARD = "look.json"
_NAME = re.compile(r"look-(\d{4,})-([0-9a-f]{12})")


class MonitorLook(ChainedRecord):
    """Contents of ``look.json``.

    Attributes
    ----------
    number : int
        1 for the first of the run.
    replaces : int or None
        The look of the same rows that this one takes the place of: labels came, or values changed.
    taken_at : datetime
        UTC, by the clock of the machine.
    plan_digest, decision : str
        SHA-256 of the plan's canonical JSON, and of the signed go.
    since_ns, until_ns : int
        Its rows: from the first time on, up to the second one (exclusive).
    rows, entities, labelled_rows, events : int
    unknown_entities : tuple of str
        Entities that the pilot never saw; sessions, which are all new, are not listed.
    keys_sha256, labels_sha256, inputs_sha256 : str
        Of which rows there are, what their labels say, and what was scored.
    recommendation : Recommendation
    summary : str
        Why, in words.
    findings : tuple of Finding
    kpis : list of dict
        Every figure, as in ``result.json``.
    drift : dict
        Stability index of each channel.
    log : dict
        Files with their hashes, and counts of rows read and left out.
    environment : dict
        Machine and software.
    files : dict
        SHA-256 of each other file of the folder, by its path in it.
    previous : str or None
        SHA-256 of the card of the look before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal["sma.monitor_look"] = "sma.monitor_look"
    version: Literal[1] = 1
    number: int
    replaces: int | None
    taken_at: AwareDatetime
    plan_digest: str
    decision: str
    since_ns: int
    until_ns: int
    rows: int
    entities: int
    labelled_rows: int
    events: int
    unknown_entities: tuple[str, ...]
    keys_sha256: str
    labels_sha256: str
    inputs_sha256: str
    recommendation: Recommendation
    summary: str
    findings: tuple[Finding, ...]
    kpis: list[dict[str, Any]]
    drift: dict[str, float]
    log: dict[str, Any]
    environment: dict[str, Any]
    files: dict[str, str]
    previous: str | None

    @property
    def folder_name(self) -> str:
        """Name of the look's folder."""
        return f"look-{self.number:04}-{self.sha256[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the card's own hash."""
        return {"sha256": self.sha256, **self.model_dump(mode="json")}


class Chain(NamedTuple):
    """The looks of a run that can be read, the first one first, and what is wrong with them."""

    looks: tuple[MonitorLook, ...]
    faults: tuple[str, ...]

    @property
    def standing(self) -> tuple[MonitorLook, ...]:
        """The looks that no later one replaces, in the order of the rows they were taken on."""
        replaced = {look.replaces for look in self.looks}
        kept = [look for look in self.looks if look.number not in replaced]
        return tuple(sorted(kept, key=lambda look: look.since_ns))


def read_looks(run: RunFolder) -> Chain:
    """Read every look of the run, and check its files and that each follows the one before."""
    looks: list[MonitorLook] = []
    faults: list[str] = []
    number, previous = 0, None
    for folder in _folders(run):
        name = f"{run.monitor.name}/{folder.name}"
        match = _NAME.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            faults.append(f"{name}: not a look")
            continue
        own = int(match[1])
        if own != number + 1:
            twin = "another one of that number stands beside it" if own == number else ""
            faults.append(f"{name}: {twin or f'look {number + 1} is missing'}")
        number = own
        try:
            content = (folder / CARD).read_bytes()
            look = MonitorLook.model_validate_json(content)
        except (OSError, ValidationError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            faults.append(f"{name}/{CARD}: cannot be read: {first}")
            previous = None
            continue
        if look.folder_name != folder.name or content != look.content:
            faults.append(f"{name}/{CARD}: changed: its hash is not the one in the folder's name")
        elif look.previous != previous:
            faults.append(f"{name}/{CARD}: does not follow the look before it")
        faults += [f"{name}/{fault}" for fault in _changed_files(folder, look)]
        looks.append(look)
        previous = look.sha256
    return Chain(tuple(looks), tuple(faults))


def load_looks(run: RunFolder) -> Chain:
    """Read every look of the run.

    Raises
    ------
    RunError
        When one was changed, or is missing.
    """
    chain = read_looks(run)
    if chain.faults:
        raise RunError(
            f"{run.path}: {chain.faults[0]}; put the looks back from a copy "
            "(`sma-pilot verify` lists all that was changed)"
        )
    return chain


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a look's folder, the card aside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: sha256_of(path) for name, path in named.items() if name != CARD}


def _changed_files(folder: Path, look: MonitorLook) -> Iterator[str]:
    try:
        found = hashes_of(folder)
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    for name in sorted(found.keys() | look.files.keys()):
        if name not in found:
            yield f"{name}: missing"
        elif name not in look.files:
            yield f"{name}: new"
        elif found[name] != look.files[name]:
            yield f"{name}: changed"


def _folders(run: RunFolder) -> Iterator[Path]:
    """Give what may be a look, by number; hidden folders are looks that never became one.

    The page is written anew with each look, and no look vouches for it.
    """
    if run.monitor.is_dir():
        found = [
            path
            for path in run.monitor.iterdir()
            if not path.name.startswith(".") and path != run.monitor_page
        ]
        # By number and not by name: look 10,000 comes after look 9,999.
        yield from sorted(found, key=lambda path: (_number(path), path.name))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return 0 if match is None else int(match[1])
