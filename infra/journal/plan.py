"""The plan: for each step its key, whether it is reused, run or blocked, and why. Imports nothing heavy."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from infra.errors import DamagedArtifactError
from infra.journal import freezing, runs
from infra.journal.acceptance import accepted_key
from infra.journal.code import definition_digests
from infra.journal.key import digest, identity
from infra.journal.reasons import Cause, Find, Origin, causes
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
    definitions: Mapping[str, Mapping[str, str]]
    """Digests of the step's functions by module: in no key, but they say which function changed."""
    status: Status
    reasons: tuple[str, ...]
    causes: tuple[Cause, ...] = ()
    """What changed since the newest finished artifact, here and above; `reasons` is that in words."""
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


def make_plan(
    targets: Sequence[Step], store: Store, cluster: Mapping[str, float], origin: Origin = lambda path: ""
) -> list[PlannedStep]:
    """Plans `targets` and what they need.

    A step without a sound artifact runs, even where all that follows it is reused and nobody reads it: the root is then
    whole again, for lineage and for the next change. Steps are deterministic, so what follows keeps its key.

    Args:
        targets: last steps of the pipeline.
        store: where finished artifacts are looked for; every one that is found is verified.
        cluster: what the cluster has: `CPU`, `GPU`.
        origin: tells where config values come from, for the reasons.
    """
    planned: dict[str, PlannedStep] = {}
    damaged: set[str] = set()
    for step in order(targets):
        input_keys = {name: planned[parent.name].key for name, parent in step.inputs.items()}
        content = identity(step, input_keys)
        found: tuple[Cause, ...] = ()
        key, manifest, reasons = _finished(step, content, store)
        if manifest is None and reasons:
            damaged.add(step.name)
        status: Status = "reused" if manifest else "run"
        definitions = definition_digests(step.module)
        now = PlannedStep(
            step=step,
            key=key,
            identity=content,
            definitions=definitions,
            status=status,
            reasons=reasons,
            manifest=manifest,
        )
        planned[step.name] = now
        if manifest is None:
            refused = list(impossible(step, cluster))
            blocked_by = [p.name for p in step.inputs.values() if planned[p.name].status == "blocked"]
            if refused or blocked_by:
                status = "blocked"
                reasons = (*reasons, *refused, *(f"needs {name}, which is blocked" for name in blocked_by))
            elif not reasons:
                old = next(store.manifests(step.name), None)
                found = tuple(causes(now, old, planned, _finder(store), origin)) if old else ()
                reasons = tuple(cause.text for cause in found) or (_absent(key, store),)
            planned[step.name] = replace(now, status=status, reasons=reasons, causes=found)
    _tell_missing(planned, damaged)
    return list(planned.values())


def _finished(
    step: Step, content: Mapping[str, Any], store: Store
) -> tuple[str, Mapping[str, Any] | None, tuple[str, ...]]:
    """Key and verified manifest of the artifact that stands for `step`: its own, a frozen or an accepted one; and what
    is to be said. Without one, the key that it will have."""
    own = digest(content)
    reasons: tuple[str, ...] = ()
    for key, reason in itertools.chain([(own, "")], _others(step, content, store)):
        try:
            manifest = store.find(step.name, key)
        except DamagedArtifactError as error:
            reasons = (*reasons, f"its artifact is damaged: {error}")
            continue
        if manifest is not None:
            return key, manifest, (*reasons, reason) if reason else ()
    return own, None, reasons


def _others(step: Step, content: Mapping[str, Any], store: Store) -> Iterator[tuple[str, str]]:
    """(key, reason) of artifacts that may stand for the one that is not there, the best first."""
    if step.frozen:
        for manifest in freezing.candidates(store, step, content):
            yield manifest["key"], freezing.told(step.name, manifest)
    accepted = accepted_key(store, step, content)
    if accepted is not None:
        yield accepted, "accepted: its code changed, its meaning did not"


def _absent(key: str, store: Store) -> str:
    """Why there is no artifact of a step, where no older one tells."""
    for record in runs.load_all(store):
        if any(step.key == key and step.status in ("ran", "reused") for step in record.steps):
            return f"its artifact is gone: run {record.id} had it"
    return "has never been made here"


def _tell_missing(planned: dict[str, PlannedStep], damaged: set[str]) -> None:
    """Says of artifacts that are gone what was made from them: the key of a finished step covers those of its inputs.

    Args:
        planned: every step by name, each after its inputs; changed in place.
        damaged: names of the steps whose artifact is there, but damaged.
    """
    heirs: dict[str, str] = {}
    for name, one in reversed(list(planned.items())):
        if one.status == "run" and name in heirs and name not in damaged:
            told = (f"its artifact is missing; {heirs[name]} was made from it",)
            planned[name] = replace(one, reasons=told, causes=())
        if one.manifest is not None or name in heirs or name in damaged:
            made_from = (one.manifest or {}).get("identity", one.identity)["inputs"]  # others, where it is frozen
            heirs |= {
                parent.name: name
                for role, parent in one.step.inputs.items()
                if made_from.get(role) == planned[parent.name].key
            }


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


def neighbours(plan: Sequence[PlannedStep], cluster: Mapping[str, float]) -> dict[str, tuple[list[str], list[str]]]:
    """For each step that runs, those that neither need it nor are needed by it: (beside it, not beside it).

    Two run side by side where their resources fit into the cluster together; else the second waits for the first.
    """
    running = [planned for planned in plan if planned.status == "run"]
    needs = {planned.step.name: {step.name for step in order([planned.step])} for planned in plan}
    found: dict[str, tuple[list[str], list[str]]] = {planned.step.name: ([], []) for planned in running}
    for one, other in itertools.permutations(running, 2):
        a, b = one.step, other.step
        if a.name not in needs[b.name] and b.name not in needs[a.name]:
            both = (a.resources.held(cluster), b.resources.held(cluster))
            fits = all(sum(one[name] for one in both) <= cluster.get(name, 0) for name in ("CPU", "GPU"))
            found[a.name][0 if fits else 1].append(b.name)
    return found


def _finder(store: Store) -> Find:
    """Manifests of the past; each is read once."""

    @functools.cache
    def find(step: str, key: str | None) -> Mapping[str, Any] | None:
        return store.manifest(step, key) if key else next(store.manifests(step), None)

    return find
