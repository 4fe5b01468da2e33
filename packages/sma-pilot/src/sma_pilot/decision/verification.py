"""Is a signed run still what was signed? Every hash is computed anew and the chain is followed."""

import re
from dataclasses import dataclass
from typing import Any

from sma_core.files import sha256_of
from sma_pilot.decision.record import Decision, read_chain
from sma_pilot.decision.seal import seal
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.progress import OnProgress, no_progress
from sma_pilot.report.svg import printable
from sma_pilot.run_folder import STAGES, RunFolder

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
    looks : int
        Looks of the monitor, which follow a decision and are no part of it.
    look_faults : tuple of str
        What is wrong with them.
    """

    decisions: tuple[Decision, ...]
    unchanged: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    faults: tuple[str, ...]
    looks: int = 0
    look_faults: tuple[str, ...] = ()

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
                for name in ("unchanged", "changed", "missing", "new", "faults", "look_faults")
            },
            "looks": self.looks,
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
        lines += [f"looks    {printable(fault, 400)}" for fault in self.look_faults]
        if self.looks and not self.look_faults:
            lines.append(f"looks    {self.looks} of the monitor, as they were taken")
        lines.append(
            "\nNothing was changed since the decision was signed."
            if self.is_intact
            else "\nThis is NOT the run that was signed."
        )
        if self.look_faults:
            lines.append("The looks of the monitor are NOT those that were taken.")
        return "\n".join(lines)


def verify(
    run: RunFolder, record: str | None = None, on_progress: OnProgress = no_progress
) -> Verification:
    """Hold a run folder against its newest decision, and its decisions against each other.

    A pilot in stages has decisions on each of them: every stage that was signed is held against
    its own newest one.

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
    folders = _signed_stages(run) or [run]
    found = [_hold(folder, on_progress) for folder in folders]
    decisions = tuple(own for one in found for own in one.decisions)
    faults = [fault for one in found for fault in one.faults]
    if not decisions and not faults:
        run.load_plan()
        raise RunError(f"{run.path}: nobody has signed this run; `sma-pilot sign` does")
    if record is not None and not any(own.sha256.startswith(record) for own in decisions):
        faults.append(f"no record has the hash {record}: it was removed, or written anew")
    kinds = ("unchanged", "changed", "missing", "new")
    unchanged, changed, missing, new = (
        {name for one in found for name in getattr(one, kind)} for kind in kinds
    )
    return Verification(
        decisions=decisions,
        # What one stage's decision finds wrong is wrong, though an earlier one never knew the file.
        unchanged=tuple(sorted(unchanged - changed - missing - new)),
        changed=tuple(sorted(changed)),
        missing=tuple(sorted(missing)),
        new=tuple(sorted(new)),
        faults=tuple(faults),
    )


def _signed_stages(run: RunFolder) -> list[RunFolder]:
    """Return the folders of the stages that were signed, the one signed first at the front."""
    if run.stage is not None or not (run.path / STAGES).is_dir():
        return []
    signed = [RunFolder(path) for path in sorted((run.path / STAGES).iterdir())]
    chains = [(own, read_chain(own)) for own in signed if own.decisions.is_dir()]
    order = sorted(
        chains, key=lambda one: one[1].decisions[0].signed_at if one[1].decisions else ""
    )
    return [own for own, _ in order]


def _hold(run: RunFolder, on_progress: OnProgress) -> Verification:
    """Hold one run folder against its own decisions."""
    decisions, chain_faults, newest = read_chain(run)
    place = "" if run.stage is None else f"{STAGES}/{run.stage}/"
    faults = [f"{place}{fault}" for fault in chain_faults]
    if newest is None and (decisions or faults):
        faults.append(f"{place}the newest record cannot be read, so no file was held against it")
    signed = {} if newest is None else newest.files
    found = {}
    if newest is not None:
        try:
            found = seal(run, on_progress)
        except RunError as error:
            if run.stage is None:
                raise
            # A stage's parts are told by the plan: without it, what was signed is all there is.
            faults.append(str(error))
            paths = {name: run.root / name for name in signed}
            found = {name: sha256_of(path) for name, path in paths.items() if path.is_file()}
    both = signed.keys() & found.keys()
    return Verification(
        decisions=decisions,
        unchanged=tuple(sorted(name for name in both if found[name] == signed[name])),
        changed=tuple(sorted(name for name in both if found[name] != signed[name])),
        missing=tuple(sorted(signed.keys() - found.keys())),
        new=tuple(sorted(found.keys() - signed.keys())),
        faults=tuple(faults),
    )
