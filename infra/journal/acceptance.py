"""Blessing an old result of a step whose code changed without changing its meaning.

An acceptance is a file, ROOT/accepted/<step>/<key that the new code gives>.json, that names the old key. The plan takes
the old artifact, and its key, in the place of the new one, so nothing below it runs either. Only code may differ:
another value, file or input is another result.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from infra.errors import DamagedArtifactError, UserError
from infra.journal import git
from infra.journal.freezing import INPUTS, has_grown_from
from infra.journal.key import differing, digest
from infra.journal.step import Step
from infra.storage.store import Store

FREE = ("code", "version")
"""What of an identity may differ."""
TAG = "fromzero.accepted"
KEY = r"[0-9a-f]{32}"
logger = logging.getLogger(__name__)


def acceptance_key(step: Step, identity: Mapping[str, Any]) -> str:
    """What an acceptance is filed under: the key that the new code gives; for a frozen step without its inputs, so that
    the acceptance outlives the next change of them."""
    return digest({**identity, INPUTS: {}} if step.frozen else identity)


def accepted_key(store: Store, step: Step, identity: Mapping[str, Any]) -> str | None:
    """The key of the artifact that was accepted for `identity`."""
    key = _accepted(store.read(f"accepted/{step.name}/{acceptance_key(step, identity)}.json"))
    if key and step.frozen and not has_grown_from(store, step, store.manifest(step.name, key) or {INPUTS: {}}):
        return None
    return key


def accepted_keys(store: Store) -> set[str]:
    """The keys of all artifacts that were accepted for others."""
    found = (_accepted(data) for data in store.read_all("accepted").values())
    return {key for key in found if key}


def _accepted(data: bytes | None) -> str | None:
    """What an acceptance names; None where there is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        key = json.loads(data or b"")["accepted"]
        return key if re.fullmatch(KEY, key) else None
    return None


def candidate(store: Store, step: Step, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The newest artifact of `step` that differs from `identity` in code alone; that of a frozen step in inputs too.

    Raises:
        UserError: there is none; says in what the newest differs.
    """
    free = (*FREE, INPUTS) if step.frozen else FREE
    newest: list[str] | None = None
    for manifest in store.manifests(step.name):
        if manifest["key"] == digest(identity):  # its own: not its code is another, its files are damaged
            newest = newest or ["files, which are damaged: run it again"]
            continue
        differs = differing(identity, manifest["identity"], free)
        if not differs and (not step.frozen or has_grown_from(store, step, manifest)):
            try:
                return store.find(step.name, manifest["key"]) or manifest
            except DamagedArtifactError as error:
                logger.warning("%s is passed over: %s", manifest["key"], error)
                differs = ["files, which are damaged"]
        newest = newest or differs or ["data"]
    if newest is None:
        raise UserError(f"{step.name} has never been made here, so there is nothing to accept")
    remedy = "; accept the steps that it takes from first" if INPUTS in newest else ""
    raise UserError(
        f"{step.name}: not its code alone changed, but also its {' and '.join(newest)}{remedy}; "
        f"see fromzero why {step.name}"
    )


def accept(store: Store, step: str, key: str, manifest: Mapping[str, Any], changes: list[str], reason: str) -> None:
    """Writes the acceptance; see `told` for MLflow.

    Args:
        store: the root.
        step: its name.
        key: what it is filed under; see `acceptance_key`.
        manifest: of the old artifact.
        changes: what changed, for the record.
        reason: why the meaning is the same, in the user's words.
    """
    content = {
        "step": step,
        "key": key,
        "accepted": manifest["key"],
        "reason": reason,
        "changes": changes,
        "by": getpass.getuser(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **git.commit(),
    }
    store.write(f"accepted/{step}/{key}.json", content)


def told(store: Store) -> Iterator[dict[str, Any]]:
    """What MLflow is to know of all acceptances: a tag of the run that made what was accepted, oldest first."""
    found = []
    for data in store.read_all("accepted").values():
        key = _accepted(data)
        content = json.loads(data) if key else {}
        manifest = store.manifest(content["step"], key) if key else None
        if manifest is not None:
            found.append((content, manifest))
    for content, manifest in sorted(found, key=lambda pair: str(pair[0].get("at"))):
        tags = {TAG: json.dumps(content, ensure_ascii=False), f"{TAG}.{content['key'][:12]}": content["reason"]}
        yield {"kind": "tags", "id": f"{manifest['made_by_run']}/{manifest['step']}", "tags": tags}
