"""The plan: for each step its key, whether it is reused, run or blocked, and why. Imports nothing heavy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import DamagedArtifactError
from infra.journal.key import digest, identity
from infra.journal.step import Artifact, Step
from infra.storage.store import Store

logger = logging.getLogger(__name__)
Status = Literal["reused", "run", "blocked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """One line of the plan."""

    step: Step
    key: str
    identity: Mapping[str, Any]
    status: Status
    reasons: tuple[str, ...]
    manifest: Mapping[str, Any] | None
    """Of the finished artifact, if reused."""


def order(targets: Sequence[Step]) -> list[Step]:
    """`targets` and all they need, each after its inputs, in the order in which they are first met."""
    done: dict[str, Step] = {}

    def visit(step: Step) -> None:
        for parent in step.inputs.values():
            visit(parent)
        done.setdefault(step.name, step)

    for target in targets:
        visit(target)
    return list(done.values())


def make_plan(targets: Sequence[Step], store: Store, cluster: Mapping[str, float]) -> list[PlannedStep]:
    """Plans `targets` and what they need.

    Args:
        targets: last steps of the pipeline.
        store: where finished artifacts are looked for; every one that is found is verified.
        cluster: what the cluster has: `CPU`, `GPU`.
    """
    planned: dict[str, PlannedStep] = {}
    for step in order(targets):
        input_keys = {name: planned[parent.name].key for name, parent in step.inputs.items()}
        content = identity(step, input_keys)
        key = digest(content)
        reasons: tuple[str, ...] = ()
        try:
            manifest = store.find(step.name, key)
        except DamagedArtifactError as error:
            manifest, reasons = None, (f"its artifact is damaged: {error}",)
        status: Status = "reused" if manifest else "run"
        if manifest is None:
            refused = list(impossible(step, cluster))
            blocked_by = [p.name for p in step.inputs.values() if planned[p.name].status == "blocked"]
            if refused or blocked_by:
                status = "blocked"
                reasons = (*reasons, *refused, *(f"needs {name}, which is blocked" for name in blocked_by))
            else:
                reasons = reasons or tuple(_why(step, content, store, planned))
        planned[step.name] = PlannedStep(
            step=step, key=key, identity=content, status=status, reasons=reasons, manifest=manifest
        )
    return list(planned.values())


def artifact_of(planned: PlannedStep, store: Store, manifest: Mapping[str, Any]) -> Artifact:
    """The artifact that `manifest` describes."""
    return Artifact(
        step=planned.step.name,
        key=planned.key,
        path=store.artifact_folder(planned.step.name, planned.key),
        metrics=manifest["metrics"],
        measured=manifest["measured"],
    )


def impossible(step: Step, cluster: Mapping[str, float]) -> Iterator[str]:
    """What `step` wants and `cluster` can never grant, a line each."""
    wishes = (("CPU", "CPUs", step.resources.num_cpus), ("GPU", "GPUs", step.resources.num_gpus))
    for name, unit, wish in wishes:
        if wish > cluster.get(name, 0):
            yield (
                f"wants {wish:g} {unit}, the cluster has {cluster.get(name, 0):g}: "
                "lower cluster.num_workers or cluster.threads_per_worker, or join a larger one with cluster.address"
            )


def _why(step: Step, new: Mapping[str, Any], store: Store, planned: Mapping[str, PlannedStep]) -> Iterator[str]:
    """Why a step runs: what differs from its newest finished artifact, in the user's words."""
    old = next((m["identity"] for m in store.manifests(step.name)), None)
    if old is None:
        yield "has never been made here"
        return
    upstream = [
        name
        for name, parent in sorted(step.inputs.items())
        if old["inputs"].get(name) != new["inputs"].get(name) and planned[parent.name].status == "run"
    ]
    if upstream:
        yield f"its input {', '.join(upstream)} runs"
    others = sorted(n for n in new["inputs"] if n not in upstream and old["inputs"].get(n) != new["inputs"][n])
    if others:
        yield f"its input {', '.join(others)} is another one"
    yield from (f"{path} changed {a} -> {b}" for path, a, b in _config_changes(old["config"], new["config"], step.name))
    changed = [name for name in {**old["code"], **new["code"]} if old["code"].get(name) != new["code"].get(name)]
    if changed:
        yield f"its code changed: {', '.join(sorted(changed))}"
    for source in sorted({**old["raw"], **new["raw"]}):
        if old["raw"].get(source) != new["raw"].get(source):
            yield f"the files of source {source} changed"
    for library, version in new["libraries"].items():
        if old["libraries"].get(library) != version:
            yield f"{library} changed {old['libraries'].get(library)} -> {version}"
    if old["version"] != new["version"]:
        yield f"the step's version changed {old['version']} -> {new['version']}"


def _config_changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, old, new) of every leaf that differs between two encoded configs."""
    for tag in ("fields", "mapping"):
        if isinstance(old, dict) and isinstance(new, dict) and tag in old and tag in new:
            for name in sorted({**old[tag], **new[tag]}):
                yield from _config_changes(old[tag].get(name), new[tag].get(name), f"{path}.{name}")
            return
    if old != new:
        yield path, _plain(old), _plain(new)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        inner = value.get("fields", value.get("mapping", value))
        return {name: _plain(item) for name, item in inner.items()} if isinstance(inner, dict) else inner
    return [_plain(item) for item in value] if isinstance(value, list) else value
