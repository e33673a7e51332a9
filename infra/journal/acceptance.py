"""Blessing an old result of a step whose code changed without changing its meaning.

An acceptance is a file, ROOT/accepted/<step>/<key that the new code gives>.json, that names the old key. The plan takes
the old artifact, and its key, in the place of the new one, so nothing below it runs either. Only code may differ:
another value, file or input is another result.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Mapping
from typing import Any

from infra.errors import UserError
from infra.journal import git
from infra.storage.files import write_json
from infra.storage.store import Store

FREE = ("code", "version")
"""What of an identity may differ."""
TAG = "fromzero.accepted"


def accepted_key(store: Store, step: str, key: str) -> str | None:
    """The key of the artifact that was accepted for `key`."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((store.root / "accepted" / step / f"{key}.json").read_bytes())
        return str(content["accepted"])
    return None


def accepted_keys(store: Store) -> set[str]:
    """The keys of all artifacts that were accepted for others."""
    pairs = [(path.parent.name, path.stem) for path in (store.root / "accepted").glob("*/*.json")]
    return {key for step, new in pairs if (key := accepted_key(store, step, new))}


def candidate(store: Store, step: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The newest artifact of `step` that differs from `identity` in code alone.

    Raises:
        UserError: there is none; says in what the newest differs.
    """
    newest: list[str] | None = None
    for manifest in store.manifests(step):
        old = manifest["identity"]
        differs = [name for name in identity if name not in FREE and old.get(name) != identity[name]]
        if not differs:
            return manifest
        newest = newest or differs
    if newest is None:
        raise UserError(f"{step} has never been made here, so there is nothing to accept")
    remedy = "; accept the steps that it takes from first" if "inputs" in newest else ""
    raise UserError(
        f"{step}: not its code alone changed, but also its {' and '.join(newest)}{remedy}; see fromzero why {step}"
    )


def accept(
    store: Store, step: str, key: str, manifest: Mapping[str, Any], changes: list[str], reason: str
) -> dict[str, Any]:
    """Writes the acceptance, and returns the message that tells MLflow.

    Args:
        store: the root.
        step: its name.
        key: what the new code gives.
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
    folder = store.root / "accepted" / step
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{key}.json", content)
    told = json.dumps(content, ensure_ascii=False)
    return {"kind": "tags", "id": f"{manifest['made_by_run']}/{step}", "tags": {TAG: told, f"{TAG}.{key[:12]}": reason}}
