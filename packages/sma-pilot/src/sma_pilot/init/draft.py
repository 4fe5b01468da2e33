"""From a log to a first plan: profile the columns, read the log once in order, write TOML."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sma_pilot.errors import LogError
from sma_pilot.init.borders import USUAL, choose_borders
from sma_pilot.init.columns import Parts, could_be_entities, guess_parts
from sma_pilot.init.plan_text import Draft, plan_text
from sma_pilot.init.profile import Profile, find_log_files, take_profile
from sma_pilot.logs.facts import LogFacts, collect_facts
from sma_pilot.logs.files import FORMATS, format_of, open_files, printable
from sma_pilot.logs.leakage import SUSPICIOUS
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.slices import JUDGED
from sma_pilot.plan import LogSource, Slices, parse_plan
from sma_pilot.progress import OnProgress

_LISTED_FILES = 20
_LONG = timedelta(days=365_000)
_SILENT_PERIODS = 30
_REPEATED = 0.5


def init_plan(
    log_paths: Sequence[Path],
    *,
    time: str | None = None,
    entity: str | None = None,
    label: str | None = None,
    data_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> str:
    """Look at a log and write a commented plan for it.

    Parameters
    ----------
    log_paths : sequence of Path
        Files, folders or glob patterns, from the working directory or else from `data_dir`.
    time, entity, label : str, optional
        Columns, where the guess needs help; an empty `entity` or `label` says that there is none.
    data_dir : Path, optional
        Where the plan's paths will start; the working directory by default. Files outside of it
        are named by their absolute paths.
    on_progress : OnProgress, optional
        Told the rows done by stage.

    Returns
    -------
    str
        A ``pilot.toml`` that `load_plan` reads.

    Raises
    ------
    LogError
        When the log cannot be read, or a column's part cannot be decided; the message names the
        option that decides it.
    """
    data_dir = Path() if data_dir is None else data_dir
    paths = find_log_files(log_paths, data_dir)
    patterns = _patterns(paths, data_dir)
    _refuse_lines(paths)
    files = open_files(patterns, data_dir)
    profile = take_profile(files, on_progress)
    parts = guess_parts(profile, files, time, entity, label)
    facts = _look(parts, patterns, data_dir, USUAL, on_progress)
    if entity is None and parts.entity is None:
        parts, facts = _find_entity(parts, profile, facts, patterns, data_dir, on_progress)
    survey = facts.reader.survey
    borders = choose_borders(facts.event_times, survey.first, survey.last)
    if borders != USUAL:
        facts = _look(parts, patterns, data_dir, borders, on_progress)
    parts = _drop_useless(parts, facts)
    text = plan_text(_draft(parts, facts, patterns, borders, paths))
    parse_plan(text, "the plan just written")
    return text


def _refuse_lines(paths: Sequence[Path]) -> None:
    """Say what to write by hand: no one can guess what the words of a line mean."""
    for path in paths:
        if format_of(path) == "lines":
            raise LogError(
                f"{printable(path)}: plain lines, of which no plan can be drafted: only you know "
                "what their words mean. Copy the plan for lines in docs/tasks.md; say in "
                "log.lines.pattern how a line is cut into columns, in log.text.column which of "
                "them is the text, and in log.text.session or log.entity what belongs together; "
                "then run `sma-pilot check`"
            )


def _look(
    parts: Parts,
    patterns: Sequence[str],
    data_dir: Path,
    borders: tuple[float, float],
    on_progress: OnProgress | None,
) -> LogFacts:
    source = LogSource(
        files=tuple(patterns),
        time=parts.time,
        entity=parts.entity,
        label=parts.label,
        numeric=tuple(parts.numeric),
        categorical=tuple(parts.categorical),
        period=timedelta(seconds=1),
        max_gap=_LONG,
    )
    slices = Slices(validation_from=borders[0], judged_from=borders[1])
    return collect_facts(LogReader(source, data_dir), source, slices, None, on_progress)


def _find_entity(
    parts: Parts,
    profile: Profile,
    facts: LogFacts,
    patterns: Sequence[str],
    data_dir: Path,
    on_progress: OnProgress | None,
) -> tuple[Parts, LogFacts]:
    """Where most times repeat, several machines share the log: find the column that names them."""
    if facts.duplicates <= _REPEATED * facts.reader.survey.rows:
        return parts, facts
    fitting = []
    for name in could_be_entities(profile, parts):
        numeric = [other for other in parts.numeric if other != name]
        categorical = [other for other in parts.categorical if other != name]
        named = replace(parts, entity=name, numeric=numeric, categorical=categorical)
        if not numeric:
            continue
        again = _look(named, patterns, data_dir, USUAL, on_progress)
        if again.duplicates <= facts.duplicates * 0.02:
            fitting.append((named, again))
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(repr(named.entity) for named, _ in fitting) or "no column's"
    raise LogError(
        f"{facts.duplicates:,} of {facts.reader.survey.rows:,} rows repeat an earlier row's time, "
        f"so several machines share the log, and {names} values tell them apart; name the column "
        'of the machine with --entity (--entity "" for a single machine)'
    )


def _drop_useless(parts: Parts, facts: LogFacts) -> Parts:
    """Leave out channels that give the answer away, or say nothing."""
    answers = {one.channel for one in facts.label_separations if one.area >= SUSPICIOUS}
    dropped = {
        name: "tells labelled events from normal rows all by itself; put it back if it is "
        "measured, not written when the event was noticed"
        for name in (*parts.numeric, *parts.categorical)
        if name in answers
    }
    for name, vocabulary in zip(facts.reader.columns.categorical, facts.vocabularies, strict=True):
        if len(vocabulary) <= 2:
            dropped.setdefault(name, "has one value in the train slice")
    numeric = [name for name in parts.numeric if name not in dropped]
    if not numeric:
        raise LogError(
            f"every numeric channel gives the label {parts.label!r} away; name another column "
            'with --label (--label "" for none)'
        )
    return replace(
        parts,
        numeric=numeric,
        categorical=[name for name in parts.categorical if name not in dropped],
        left_out=parts.left_out | dropped,
        maybe_labels=[] if parts.label else [n for n in parts.maybe_labels if n not in dropped],
    )


def _draft(
    parts: Parts,
    facts: LogFacts,
    patterns: Sequence[str],
    borders: tuple[float, float],
    paths: Sequence[Path],
) -> Draft:
    step = facts.steps.median
    if step is None:
        raise LogError(f"no entity has two rows of different time in column {parts.time!r}")
    # A plan counts in milliseconds; a log of a faster beat keeps its own times all the same.
    period = timedelta(milliseconds=max(1, round(step / 10**6)))
    judged = facts.tally.slices[JUDGED]
    return Draft(
        name=_plan_name(paths),
        patterns=tuple(patterns),
        parts=parts,
        period=period,
        max_gap=_SILENT_PERIODS * period,
        borders=borders,
        rows=facts.reader.survey.rows,
        entities=len(facts.entities),
        first=facts.reader.survey.first,
        last=facts.reader.survey.last,
        judged_rows=judged.rows,
        judged_events=judged.events,
        events=sum(counts.events for counts in facts.tally.slices),
        has_empty_slice=any(counts.rows == 0 for counts in facts.tally.slices),
    )


def _patterns(paths: Sequence[Path], data_dir: Path) -> list[str]:
    """Name the files as the plan will: relative to the data folder where they lie in it."""
    names = [_relative(path, data_dir) for path in paths]
    folders = {path.parent for path in paths}
    if len(names) <= _LISTED_FILES or len(folders) > 1:
        return names
    # A long list becomes a pattern, if a pattern says exactly the same.
    folder = folders.pop()
    patterns = []
    for ending in FORMATS:
        mine = {path for path in paths if path.name.endswith(ending)}
        if mine and mine == {path for path in folder.glob(f"*{ending}") if path.is_file()}:
            base = _relative(folder, data_dir)
            patterns.append(os.path.join(glob.escape(base), f"*{ending}"))  # noqa: PTH118
            names = [name for name in names if not name.endswith(ending)]
    return [*patterns, *names]


def _relative(path: Path, data_dir: Path) -> str:
    whole, base = Path(os.path.abspath(path)), Path(os.path.abspath(data_dir))  # noqa: PTH100
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)


def _plan_name(paths: Sequence[Path]) -> str:
    first = Path(os.path.abspath(paths[0]))  # noqa: PTH100
    name = first.name.split(".")[0] if len(paths) == 1 else first.parent.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
    return name or "pilot"
