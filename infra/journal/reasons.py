"""Why a step runs: what is not as it was when its newest finished artifact was made, traced up to where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from infra.journal.step import Step
from infra.storage.raw import RawFile

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
    code = _code_changes(before["code"], after["code"], old.get("definitions", {}), now.definitions)
    found += [Cause(step=name, text=text, is_code=True) for text in code]
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
    yield from _file_changes(old.get("raw", {}), now.step.raw)
    for library in sorted({**before["libraries"], **after["libraries"]}):
        was, is_ = before["libraries"].get(library), after["libraries"].get(library)
        if was != is_:
            yield f"{library} changed {was} -> {is_}"
    for what in ("version", "format_version", "step"):
        if before[what] != after[what]:
            yield f"{name}: its {what} changed {before[what]} -> {after[what]}"


def _code_changes(
    before: Mapping[str, str],
    after: Mapping[str, str],
    old: Mapping[str, Mapping[str, str]],
    new: Mapping[str, Mapping[str, str]],
) -> Iterator[str]:
    """The files whose code changed, with the functions in them."""
    for module in sorted({**before, **after}):
        if before.get(module) == after.get(module):
            continue
        path = module.replace(".", "/") + ".py"
        if module not in before or module not in after:
            yield f"code {'used now' if module in after else 'used no more'}: {path}"
            continue
        was, is_ = old.get(module, {}), new.get(module, {})
        names = [name for name in {**was, **is_} if was.get(name) != is_.get(name)]
        yield f"code changed: {path}" + (f": {', '.join(names)}" if was and names else "")


def _file_changes(old: Mapping[str, list[Mapping[str, Any]]], new: Mapping[str, tuple[RawFile, ...]]) -> Iterator[str]:
    """The raw files that changed, came or went, by source; one that only moved is none."""
    for source in sorted({**old, **new}):
        was = {file["sha256"]: file["path"] for file in old.get(source, [])}
        is_ = {file.digest: file.path for file in new.get(source, ())}
        gone = {path: digest for digest, path in was.items() if digest not in is_}
        come = {path: digest for digest, path in is_.items() if digest not in was}
        for path in sorted({**gone, **come}):
            what = "changed" if path in gone and path in come else "is new" if path in come else "is gone"
            digests = f" {gone[path][:8]} -> {come[path][:8]}" if what == "changed" else ""
            yield f"file {Path(path).name} of {source} {what}{digests}"


def config_changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, old, new) of every leaf that differs between two encoded configs."""
    for tag in ("fields", "mapping"):
        if isinstance(old, dict) and isinstance(new, dict) and tag in old and tag in new:
            if old.get("class") != new.get("class"):
                yield path, old["class"], new["class"]
            for name in sorted({**old[tag], **new[tag]}):
                yield from config_changes(old[tag].get(name), new[tag].get(name), f"{path}.{name}")
            return
    if old != new:
        yield path, _plain(old), _plain(new)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        inner = value.get("fields", value.get("mapping", value))
        return {name: _plain(item) for name, item in inner.items()} if isinstance(inner, dict) else inner
    return [_plain(item) for item in value] if isinstance(value, list) else value
