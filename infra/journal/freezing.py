"""Frozen steps: one that was made once stays while what it is made from grows, until somebody retrains it.

Where a frozen step's own key has no artifact, the plan takes the newest one that differs in nothing but its inputs, and
that artifact's key stands for the step in all that follows, as with an acceptance. Its manifest still names the inputs
that it was made from. A change of its config or code makes it anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.journal.key import differing
from infra.journal.step import Step
from infra.storage.store import Store

INPUTS = "inputs"


def candidates(store: Store, step: Step, identity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Manifests of artifacts that a frozen `step` may take, the newest first; their files are not verified."""
    for manifest in store.manifests(step.name):
        if not differing(identity, manifest["identity"], (INPUTS,)) and has_grown_from(store, step, manifest):
            yield manifest


def has_grown_from(store: Store, step: Step, manifest: Mapping[str, Any]) -> bool:
    """Whether what `step` is made from now is what `manifest` was made from, grown: not other data altogether.

    Data that has grown shares a file or a folder with what it was. Two runs with the same settings on other data, such
    as that of the default and then the user's own, share neither: a tokenizer for the one is none for the other. Where
    the raw files of either are not known, they count as the same.
    """
    now = {
        place
        for parent in step.inputs.values()
        for files in parent.raw.values()
        for file in files
        for place in _places(file.path, file.digest)
    }
    parents = (store.manifest(parent["step"], parent["key"]) for parent in manifest["inputs"].values())
    then = {
        place
        for parent in parents
        if parent is not None
        for files in parent["raw"].values()
        for file in files
        for place in _places(file["path"], file["sha256"])
    }
    return not now or not then or bool(now & then)


def _places(path: str, digest: str) -> tuple[str, str]:
    return digest, str(Path(path).parent)


def told(step: str, manifest: Mapping[str, Any]) -> str:
    """Why a frozen step is reused, in the user's words: `frozen: trained on 2026-11-20 from corpus abcd1234; ...`."""
    made = time.strftime("%Y-%m-%d", time.localtime(manifest["finished_at"]))
    inputs = " and ".join(f"{parent['step']} {parent['key'][:8]}" for parent in manifest["inputs"].values())
    return f"frozen: trained on {made} from {inputs}; retrain it with {step}.frozen=false"
