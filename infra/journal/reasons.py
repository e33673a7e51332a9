"""Why a step runs: what is not as it was when its newest finished artifact was made, traced up to where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from infra.journal.changes import (
    DECLARED,
    CodeChange,
    FileChange,
    code_changes,
    config_changes,
    file_changes,
    files_of,
    value_changes,
)
from infra.journal.step import Step

Manifest = Mapping[str, Any]
Origin = Callable[[str], str]
"""Where the value of a dotted config key comes from: `command line`, a file of conf/; empty if that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """One thing that is not as it was."""

    step: str
    """The step in which it arises."""
    text: str
    """What changed, old and new value."""
    is_code: bool = False
    """Told last: after values and files, which somebody changed on purpose."""
    through: tuple[str, ...] = ()
    """The steps that hand it down, from the one in which it arises to the last before the step that was asked about."""


class Current(Protocol):
    """A step as it is planned now."""

    @property
    def step(self) -> Step:
        """What it is."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that its key is made of."""
        ...

    @property
    def definitions(self) -> Mapping[str, Mapping[str, str]]:
        """Digests of its functions by module."""
        ...


Find = Callable[[str, str | None], Manifest | None]
"""The manifest of (step, key), or the newest of a step where the key is None."""


def causes(now: Current, old: Manifest, planned: Mapping[str, Current], find: Find, origin: Origin) -> list[Cause]:
    """What differs between a planned step and a finished artifact, with what came from its inputs; each once.

    Args:
        now: the step.
        old: manifest of an artifact of the same step.
        planned: every step by name.
        find: looks for manifests of the past.
        origin: tells where config values come from.
    """
    name, before, after = now.step.name, old["identity"], now.identity
    found = [Cause(step=name, text=text) for text in _own(now, old, origin)]
    code = code_changes(before["code"], after["code"], old.get("definitions", {}), now.definitions)
    found += [Cause(step=name, text=_code_reason(change), is_code=True) for change in code]
    for role in sorted({**before["inputs"], **after["inputs"]}):
        was, is_ = before["inputs"].get(role), after["inputs"].get(role)
        if was == is_:
            continue
        parent = now.step.inputs.get(role)
        if parent is None or was is None:
            found.append(Cause(step=name, text=f"its input {role} was {'added' if parent else 'taken away'}"))
            continue
        earlier = find(parent.name, was)
        above = causes(planned[parent.name], earlier, planned, find, origin) if earlier else []
        found += [replace(cause, through=(*cause.through, parent.name)) for cause in above] or [
            Cause(step=parent.name, text=f"{parent.name} is another one than before", through=(parent.name,))
        ]
    once = {cause.text: cause for cause in reversed(found)}  # code that several steps share is told once
    first = [cause for cause in found if once[cause.text] is cause]
    return sorted(first, key=lambda cause: cause.is_code)


def _own(now: Current, old: Manifest, origin: Origin) -> Iterator[str]:
    name, before, after = now.step.name, old["identity"], now.identity
    for path, was, is_ in config_changes(before["config"], after["config"], name):
        source = origin(path)
        yield f"{path} changed {was} -> {is_}" + (f" ({source})" if source else "")
    files = {
        source: {file.digest: {"path": file.path, "sha256": file.digest, "format": file.format} for file in files}
        for source, files in now.step.raw.items()
    }
    yield from map(_file_reason, file_changes(files_of(old), files))
    for library, was, is_ in value_changes(before["libraries"], after["libraries"]):
        yield f"{library} changed {was} -> {is_}"
    for what in DECLARED:
        if before[what] != after[what]:
            yield f"{name}: its {what} changed {before[what]} -> {after[what]}"


def _file_reason(change: FileChange) -> str:
    what = {"added": "is new", "removed": "is gone", "changed": "changed"}[change.change]
    if change.old and change.new:
        was, is_ = change.old["sha256"][:8], change.new["sha256"][:8]
        if was == is_:
            was, is_ = change.old["format"], change.new["format"]
        what = f"{what} {was} -> {is_}"
    return f"file {change.name} of {change.source} {what}"


def _code_reason(change: CodeChange) -> str:
    what = {"added": "code used now", "removed": "code used no more", "changed": "code changed"}[change.change]
    return f"{what}: {change.path}" + (f": {', '.join(change.functions)}" if change.functions else "")
