"""Short names: a label says every field, a page only what tells one from another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sma_eval.effects import policy_level
from sma_eval.records import TrialRecord
from sma_eval.space import Trial


def with_short_names(
    records: Sequence[TrialRecord],
) -> tuple[list[TrialRecord], dict[str, str]]:
    """Give the policies, pools and arms of a study's trials short names.

    Parameters
    ----------
    records
        Of every trial of the study.

    Returns
    -------
    records : list of TrialRecord
        The same trials under short names, for an analysis to be read on a page.
    labels : dict
        The whole label behind each name that says less than it.
    """
    names = names_of([record.trial for record in records])
    named = [replace(record, trial=with_short_name(record.trial, names)) for record in records]
    return named, {short: label for label, short in names.items() if short != label}


def names_of(trials: Sequence[Trial]) -> dict[str, str]:
    """Return a short name for the label of each policy and pool of a study."""
    policies = short_names({trial.policy: [trial.model["policy"]] for trial in trials})
    pools = short_names({trial.pool: trial.model["pool"] for trial in trials})
    return {**policies, **pools}


def with_short_name(trial: Trial, names: Mapping[str, str]) -> Trial:
    """Call a trial's policy, pool and arm by short names."""
    policy, pool = names.get(trial.policy, trial.policy), names.get(trial.pool, trial.pool)
    short = replace(trial, policy=policy, pool=pool)
    # An arm's label has the pool where there are several: the two are set apart by a bar.
    arm = policy_level(short) + (f" | {pool}" if trial.arm.endswith(f" | {trial.pool}") else "")
    return replace(short, arm=arm)


def short_names(members: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Name each label by the kinds of its members and the fields in which these differ.

    Parameters
    ----------
    members
        For each label the configurations that it stands for, in plain form with their ``kind``.

    Returns
    -------
    dict
        Short name of each label; the labels themselves where short names would not be unique.
    """
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for group in members.values():
        for member in group:
            of_kind.setdefault(member["kind"], []).append(dict(leaves(member)))
    differ = {
        kind: {name for one in own for name in one if any(o.get(name) != one[name] for o in own)}
        for kind, own in of_kind.items()
    }

    def short(member: Mapping[str, Any]) -> str:
        kind = member["kind"]
        told = [f"{name}={value}" for name, value in leaves(member) if name in differ[kind]]
        return f"{kind}({', '.join(told)})" if told else kind

    names = {label: " + ".join(map(short, group)) for label, group in members.items()}
    if len(set(names.values())) < len(names):
        names = {label: label for label in names}
    return {label: _printable(name) for label, name in names.items()}


def _printable(name: str) -> str:
    """Keep out what no picture can hold: a study file has none, a folder edited by hand may."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """List what a nested mapping holds, each under the names on the way to it, joined by dots."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, content
