"""Is a signed run still what was signed? Every hash is computed anew and the chain is followed."""

import re
from dataclasses import dataclass
from typing import Any

from sma_pilot.decision.record import Decision, read_chain
from sma_pilot.decision.seal import seal
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.progress import OnProgress, no_progress
from sma_pilot.report.svg import printable
from sma_pilot.run_folder import RunFolder

_HASH = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of a signed run.

    Attributes
    ----------
    decisions : tuple of Decision
        Those that can be read, oldest first.
    unchanged, changed, missing, new : tuple of str
        Files of the run folder, held against the newest decision.
    faults : tuple of str
        What is wrong with the records themselves, a sentence each.
    """

    decisions: tuple[Decision, ...]
    unchanged: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def is_intact(self) -> bool:
        """Whether nothing was changed, removed or added since the newest decision."""
        return not (self.changed or self.missing or self.new or self.faults)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "intact": self.is_intact,
            "decisions": [
                {"sha256": own.sha256, **own.model_dump(mode="json", exclude={"files"})}
                for own in self.decisions
            ],
            **{
                name: list(getattr(self, name))
                for name in ("unchanged", "changed", "missing", "new", "faults")
            },
        }

    def to_text(self) -> str:
        """Lay it out for a terminal: what is wrong first, then who signed."""
        lines = [f"records  {printable(fault, 400)}" for fault in self.faults]
        for name in ("changed", "missing", "new"):
            lines += [f"{name:8} {printable(path, 400)}" for path in getattr(self, name)]
        lines.append(f"{'intact' if self.is_intact else 'same':8} {len(self.unchanged)} files")
        for own in self.decisions:
            against = f", AGAINST the verdict {own.verdict}" if own.override else ""
            lines.append(
                f"signed   {own.decision} by {printable(own.by)}, {own.moment}{against}\n"
                f"         record {own.sha256}"
            )
        lines.append(
            "\nNothing was changed since the decision was signed."
            if self.is_intact
            else "\nThis is NOT the run that was signed."
        )
        return "\n".join(lines)


def verify(
    run: RunFolder, record: str | None = None, on_progress: OnProgress = no_progress
) -> Verification:
    """Hold a run folder against its newest decision, and its decisions against each other.

    Parameters
    ----------
    run : RunFolder
    record : str, optional
        Hash of a record, or at least its first 12 digits, kept outside of the run folder. It must
        be among the records: only so does it show if the newest record was taken away, or all were
        written anew.
    on_progress : OnProgress, optional

    Raises
    ------
    RunError
        When `run` is no run folder, nobody has signed it, or a file cannot be read.
    DecisionError
        When `record` is no hash.
    """
    if record is not None and not _HASH.fullmatch(record):
        raise DecisionError(
            "--record: need the SHA-256 that `sign` printed, or its first 12 digits, "
            f"got {record!r}"
        )
    decisions, chain_faults, newest = read_chain(run)
    faults = list(chain_faults)
    if not decisions and not faults:
        run.load_plan()
        raise RunError(f"{run.path}: nobody has signed this run; `sma-pilot sign` does")
    if newest is None:
        faults.append("the newest record cannot be read, so no file was held against it")
    if record is not None and not any(own.sha256.startswith(record) for own in decisions):
        faults.append(f"no record has the hash {record}: it was removed, or written anew")
    signed = {} if newest is None else newest.files
    found = {} if newest is None else seal(run, on_progress)
    both = signed.keys() & found.keys()
    return Verification(
        decisions=decisions,
        unchanged=tuple(sorted(name for name in both if found[name] == signed[name])),
        changed=tuple(sorted(name for name in both if found[name] != signed[name])),
        missing=tuple(sorted(signed.keys() - found.keys())),
        new=tuple(sorted(found.keys() - signed.keys())),
        faults=tuple(faults),
    )
