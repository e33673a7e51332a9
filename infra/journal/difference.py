"""In what two models differ, told from manifests: the steps that made them are matched by name, and of those that are
not the same artifact it says what they were made of, with which values and code, what came out and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.journal.changes import (
    DECLARED,
    code_changes,
    config_changes,
    file_changes,
    files_of,
    value_changes,
)
from infra.journal.reasons import Find, Manifest

Row = dict[str, Any]
FLOPS = "_flops"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestry:
    """All steps that something was made by, by name, each after its inputs."""

    keys: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    """Of those that are still there."""

    @classmethod
    def of(cls, targets: Sequence[Manifest], find: Find) -> Ancestry:
        """Of `targets`, themselves included; `find` looks for the manifests of what they took."""
        keys: dict[str, str] = {}
        manifests: dict[str, Manifest] = {}

        def visit(step: str, key: str, manifest: Manifest | None) -> None:
            if step in keys or step in manifests:
                return
            if manifest is not None:
                manifests[step] = manifest
                for entry in manifest["inputs"].values():
                    visit(entry["step"], entry["key"], find(entry["step"], entry["key"]))
            keys[step] = key

        for target in targets:
            visit(target["step"], target["key"], target)
        return cls(keys=keys, manifests={name: manifests[name] for name in keys if name in manifests})


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What is not the same; `a` and `b` in a row are the two sides, None where there is nothing."""

    steps: tuple[Row, ...]
    """Every step: step, a, b (keys), status: same, differs, only_a, only_b; or unknown, if a manifest is gone."""
    data: tuple[Row, ...]
    """Raw files: step, source, change (added, removed, changed), file, a, b (path, sha256, num_bytes, num_rows)."""
    config: tuple[Row, ...]
    """step, key (dotted), a, b."""
    code: tuple[Row, ...]
    """path, change, functions, steps (that reach it); or step, name (version, function, inputs), a, b."""
    libraries: tuple[Row, ...]
    """library, a, b (major.minor), steps."""
    result: tuple[Row, ...]
    """step, name (of a metric), a, b, difference (b - a, of numbers)."""
    cost: tuple[Row, ...]
    """The same of seconds and FLOPs; step is None for the sum over all steps, those that are the same included."""

    @property
    def is_empty(self) -> bool:
        """Whether both are made by the same artifacts."""
        return all(row["status"] == "same" for row in self.steps)


def difference(a: Sequence[Manifest], find_a: Find, b: Sequence[Manifest], find_b: Find) -> Difference:
    """What differs between what `a` and `b` made. If some steps are in both, the comparison is of these alone.

    Args:
        a: of one side, a step or several.
        find_a: looks for manifests of its past.
        b: of the other side.
        find_b: the same for it.
    """
    shared = {manifest["step"] for manifest in a} & {manifest["step"] for manifest in b}
    one = Ancestry.of([manifest for manifest in a if not shared or manifest["step"] in shared], find_a)
    other = Ancestry.of([manifest for manifest in b if not shared or manifest["step"] in shared], find_b)
    steps = [_step(name, one, other) for name in {**one.keys, **other.keys}]
    pairs = [
        (row["step"], one.manifests[row["step"]], other.manifests[row["step"]])
        for row in steps
        if row["status"] == "differs"
    ]
    return Difference(
        steps=tuple(steps),
        data=tuple(row for name, was, is_ in pairs for row in _data(name, was, is_)),
        config=tuple(
            {"step": name, "key": path, "a": old, "b": new}
            for name, was, is_ in pairs
            for path, old, new in config_changes(was["identity"]["config"], is_["identity"]["config"], name)
        ),
        code=(*_code(pairs), *(row for name, was, is_ in pairs for row in _declared(name, was, is_))),
        libraries=tuple(_libraries(pairs)),
        result=tuple(row for name, was, is_ in pairs for row in _numbers(name, _metrics(was), _metrics(is_))),
        cost=(*(row for name, was, is_ in pairs for row in _numbers(name, _cost(was), _cost(is_))), *_sums(one, other)),
    )


Pairs = Sequence[tuple[str, Manifest, Manifest]]


def _step(name: str, one: Ancestry, other: Ancestry) -> Row:
    a, b = one.keys.get(name), other.keys.get(name)
    status = "same" if a == b else "only_b" if a is None else "only_a" if b is None else "differs"
    if status == "differs" and not (name in one.manifests and name in other.manifests):
        status = "unknown"
    return {"step": name, "a": a, "b": b, "status": status}


def _data(name: str, was: Manifest, is_: Manifest) -> Iterator[Row]:
    for change in file_changes(files_of(was), files_of(is_)):
        row = {"step": name, "source": change.source, "change": change.change, "file": change.name}
        yield row | {"a": dict(change.old) if change.old else None, "b": dict(change.new) if change.new else None}


def _code(pairs: Pairs) -> Iterator[Row]:
    """Each module once, with the steps that reach it."""
    steps: dict[Any, list[str]] = {}
    for name, was, is_ in pairs:
        before, after = was["identity"]["code"], is_["identity"]["code"]
        for change in code_changes(before, after, was.get("definitions", {}), is_.get("definitions", {})):
            steps.setdefault(change, []).append(name)
    for change, names in steps.items():
        yield {"path": change.path, "change": change.change, "functions": list(change.functions), "steps": names}


def _declared(name: str, was: Manifest, is_: Manifest) -> Iterator[Row]:
    before, after = (
        {**{what: one["identity"][what] for what in DECLARED}, "inputs": _roles(one)} for one in (was, is_)
    )
    for what, old, new in value_changes(before, after):
        yield {"step": name, "name": "function" if what == "step" else what, "a": old, "b": new}


def _roles(manifest: Manifest) -> dict[str, str]:
    return {role: entry["step"] for role, entry in manifest["inputs"].items()}


def _libraries(pairs: Pairs) -> Iterator[Row]:
    steps: dict[Any, list[str]] = {}
    for name, was, is_ in pairs:
        for change in value_changes(was["identity"]["libraries"], is_["identity"]["libraries"]):
            steps.setdefault(change, []).append(name)
    for (library, old, new), names in steps.items():
        yield {"library": library, "a": old, "b": new, "steps": names}


def _metrics(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest["metrics"].items() if not name.endswith(FLOPS)}


def _cost(manifest: Manifest) -> dict[str, Any]:
    flops = {name: value for name, value in manifest["metrics"].items() if name.endswith(FLOPS)}
    return {"seconds": manifest["measured"].get("seconds"), **flops}


def _numbers(step: str | None, was: Mapping[str, Any], is_: Mapping[str, Any]) -> Iterator[Row]:
    for name in {**was, **is_}:
        old, new = was.get(name), is_.get(name)
        if old != new:
            change = new - old if isinstance(old, int | float) and isinstance(new, int | float) else None
            yield {"step": step, "name": name, "a": old, "b": new, "difference": change}


def _sums(one: Ancestry, other: Ancestry) -> Iterator[Row]:
    """Of what several steps cost."""
    sums = []
    for side in (one, other):
        costs = [_cost(manifest) for manifest in side.manifests.values()]
        names = Counter(name for cost in costs for name in cost)
        sums.append({name: sum(cost.get(name) or 0.0 for cost in costs) for name in names if names[name] > 1})
    yield from _numbers(None, *sums)
