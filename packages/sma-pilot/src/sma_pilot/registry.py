"""The candidate as a version of a registered model, and which version has which alias.

Aliases follow a rule over what was signed. It is applied anew whenever a pilot is recorded, so it
does not matter in which order pilots are recorded, how often, or after which failure.
"""

import json
from collections.abc import Mapping
from typing import Any

from sma_pilot.decision.record import Decision
from sma_pilot.judge.measurements import CANDIDATE
from sma_pilot.judge.result import Verdict
from sma_pilot.replay.card import fingerprint
from sma_pilot.report.entries import (
    DECISION_TAG,
    FINGERPRINT_TAG,
    PLAN_TAG,
    RECORD_TAG,
    SIGNED_AT_TAG,
    VERDICT_TAG,
    decision_tags,
)
from sma_pilot.report.evidence import Evidence

CANDIDATE_ALIAS = "candidate"
CHAMPION_ALIAS = "champion"
PREVIOUS_ALIAS = "previous-champion"
_VERSIONS_TAG = "mlflow.modelVersions"


def register(
    client: Any,
    evidence: Evidence,
    run_id: str,
    source: str,
    model_id: str | None,
    note: str,
    *,
    verdict: Verdict,
    decision: Decision | None,
) -> None:
    """Make the candidate a version of the model named as the plan, and move the aliases.

    Parameters
    ----------
    client : MlflowClient
        Of any type, as `tracking` alone imports MLflow.
    evidence : Evidence
    run_id : str
        The candidate's run.
    source : str
        Where its files are.
    model_id : str or None
        The logged model; None when the candidate is no sequence model.
    note : str
        Who signed what, as Markdown.
    verdict : Verdict
        Of the pilot.
    decision : Decision or None
        What was signed about the candidate; None when nothing was, or the run folder is not what
        was signed any more: then its decision is about others.
    """
    name = evidence.plan.name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Candidates of the pilots called {name}.")
    mark = {
        PLAN_TAG: evidence.plan.digest,
        FINGERPRINT_TAG: fingerprint(evidence.run.models / CANDIDATE),
    }
    found = client.search_model_versions(f"name = '{name}'")
    own = [version for version in found if mark.items() <= version.tags.items()]
    if all(version.source != source for version in own):
        made = client.create_model_version(name, source, run_id, tags=mark, model_id=model_id)
        own.append(made)
        if model_id is not None:  # by which the model's page links to the version
            links = json.dumps([{"name": name, "version": made.version}])
            client.set_logged_model_tags(model_id, {_VERSIONS_TAG: links})
    tags: dict[str, str] = {VERDICT_TAG: verdict}
    if decision is not None:
        tags |= decision_tags(decision)
    for version in own:
        for tag in tags.items():
            client.set_model_version_tag(name, version.version, *tag)
        client.update_model_version(name, version.version, note)
    found = client.search_model_versions(f"name = '{name}'")
    held = client.get_registered_model(name).aliases
    for alias, number in aliases_of({int(own.version): own.tags for own in found}).items():
        if number is not None:
            client.set_registered_model_alias(name, alias, str(number))
        elif alias in held:
            client.delete_registered_model_alias(name, alias)


def aliases_of(versions: Mapping[int, Mapping[str, str]]) -> dict[str, int | None]:
    """Return the version that each alias belongs to; None where it belongs to none.

    Parameters
    ----------
    versions : mapping
        Tags of every version of one registered model, by its number.

    Returns
    -------
    dict
        ``candidate``: the newest that was judged and that nobody decided about. ``champion``: the
        one whose *go* was signed last. ``previous-champion``: the one signed before it. A *no-go*
        signed later takes a version out of the last two, so the one before moves up.
    """
    # A pilot that was fitted anew has several: what came before the last awaits nothing any more.
    newest = {versions[number][PLAN_TAG]: number for number in sorted(versions)}
    waiting = [number for number in newest.values() if DECISION_TAG not in versions[number]]
    # One signature counts once, however often its model was recorded.
    signed = {
        tags[RECORD_TAG]: number
        for number, tags in sorted(versions.items())
        if tags.get(DECISION_TAG) == "go"
    }
    order = sorted(signed.values(), key=lambda number: versions[number][SIGNED_AT_TAG])
    return {
        CANDIDATE_ALIAS: max(waiting, default=None),
        CHAMPION_ALIAS: order[-1] if order else None,
        PREVIOUS_ALIAS: order[-2] if len(order) > 1 else None,
    }
