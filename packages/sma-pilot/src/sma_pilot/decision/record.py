"""The record of a decision, and the chain that the records of a run make (docs/decide.md).

A record is a file of its own, ``decisions/<number>-<sha256>.json``: it appears whole or not at all,
and its name holds the hash of its content. It holds the hash of every other file of the run and the
hash of the record before it, so a change of any of them shows.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import AwareDatetime, ConfigDict, ValidationError

from sma_core.files import replacing
from sma_pilot.chained import ChainedRecord
from sma_pilot.errors import RunError
from sma_pilot.judge.result import Verdict
from sma_pilot.run_folder import RunFolder

Choice = Literal["go", "no-go"]

_NAME = re.compile(r"(\d{4,})-([0-9a-f]{64})\.json")


class Decision(ChainedRecord):
    """One signed decision.

    Attributes
    ----------
    number : int
        1 for the first of the run.
    time : datetime
        When it was signed, in UTC, by the clock of the machine.
    by, reason : str
        Who signed, and why, in their own words.
    decision : "go" or "no-go"
    verdict : Verdict
        What the judge had said.
    override : bool
        Whether the decision goes against that verdict.
    plan_digest : str
        SHA-256 of the plan's canonical JSON.
    files : mapping path -> SHA-256
        Every file of the run folder, the report with this decision on it among them.
    previous : str or None
        SHA-256 of the record before; None for the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["sma.decision"] = "sma.decision"
    version: Literal[1] = 1
    number: int
    time: AwareDatetime
    by: str
    decision: Choice
    reason: str
    verdict: Verdict
    override: bool
    plan_digest: str
    files: dict[str, str]
    previous: str | None

    @property
    def file_name(self) -> str:
        """Name of the record's file."""
        return f"{self.number:04}-{self.sha256}.json"

    @property
    def signed_at(self) -> str:
        """The time as text that sorts."""
        return f"{self.time:%Y-%m-%dT%H:%M:%S.%fZ}"

    @property
    def moment(self) -> str:
        """The time for people."""
        return f"{self.time:%Y-%m-%d %H:%M} UTC"


def is_against(decision: Choice, verdict: Verdict) -> bool:
    """Whether `decision` goes against `verdict`.

    To go ahead needs a verdict that says so. To stay with what runs today is against a *go* alone:
    an inconclusive verdict gives no reason to change anything.
    """
    return verdict != "go" if decision == "go" else verdict == "go"


class Chain(NamedTuple):
    """The records of a run that can be read, oldest first, and what is wrong, a sentence each."""

    decisions: tuple[Decision, ...]
    faults: tuple[str, ...]
    newest: Decision | None
    """The decision that counts; None when there is none, or its record cannot be read."""


def read_chain(run: RunFolder) -> Chain:
    """Read every record of the run and check that each follows the one before."""
    decisions: list[Decision] = []
    faults: list[str] = []
    number, previous, newest = 0, None, None
    for path in _record_files(run.decisions):
        name = f"{run.decisions.name}/{path.name}"
        match = _NAME.fullmatch(path.name)
        if match is None:
            faults.append(f"{name}: not a record of a decision")
            continue
        own = int(match[1])
        if own == number:
            faults.append(f"{name}: another decision {own} stands beside it")
        elif own != number + 1:
            faults.append(f"{name}: decision {number + 1} is missing, or more before this one")
        newest = None
        try:
            content = path.read_bytes()
            decision = Decision.model_validate_json(content)
        except OSError as error:
            faults.append(f"{name}: cannot be read: {error.strerror}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            faults.append(f"{name}: changed: {where + ': ' if where else ''}{first['msg']}")
        else:
            if hashlib.sha256(content).hexdigest() != match[2] or content != decision.content:
                faults.append(f"{name}: changed: its content has not the hash in its name")
            elif decision.number != own:
                faults.append(f"{name}: renamed: it holds decision {decision.number}")
            elif decision.previous != previous:
                faults.append(f"{name}: does not follow the record before it")
            decisions.append(newest := decision)
        number, previous = own, match[2]
    return Chain(tuple(decisions), tuple(faults), newest)


def load_decisions(run: RunFolder) -> tuple[Decision, ...]:
    """Return the run's decisions, oldest first; none when nobody has signed.

    Raises
    ------
    RunError
        When a record was changed, or is missing.
    """
    chain = read_chain(run)
    if chain.faults:
        raise RunError(
            f"{run.path}: {chain.faults[0]}; put the records back from a copy "
            "(`sma-pilot verify` lists all that was changed)"
        )
    return chain.decisions


def write_decision(run: RunFolder, decision: Decision) -> None:
    """Leave the record in the run folder, whole or not at all.

    Raises
    ------
    RunError
        When there is a record of that number by now, or it cannot be written.
    """
    try:
        run.decisions.mkdir(exist_ok=True)
        if taken := next(run.decisions.glob(f"{decision.number:04}-*"), None):
            raise RunError(f"{taken}: somebody else signed meanwhile; look at it and sign again")
        with replacing(run.decisions / decision.file_name) as partial:
            partial.write_bytes(decision.content)
    except OSError as error:
        raise RunError(f"{run.decisions}: cannot be written: {error.strerror}") from error


def _record_files(folder: Path) -> Iterator[Path]:
    """Give what may be a record, by number; hidden files are drafts that never became one."""
    if folder.is_dir():
        yield from sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")),
            key=lambda path: int(path.name.split("-")[0]) if _NAME.fullmatch(path.name) else 0,
        )
