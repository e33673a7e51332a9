"""What differs between two states of a step, as values: `reasons` says by it why a step runs, `difference` in what two
models differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Change = Literal["added", "removed", "changed"]
Files = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Raw files by source and digest: `path`, `format` and what else is known of them."""
DECLARED = ("version", "format_version", "step")
"""What of a step's identity is written down by hand: its version, that of the artifact's format, its function."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """A raw file of a source."""

    source: str
    change: Change
    """`changed`: another content under the same path, or the same content read in another format."""
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Without its folders."""
        return Path(str((self.new or self.old or {})["path"])).name


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeChange:
    """A module that a step reaches by import."""

    path: str
    """In the project."""
    change: Change
    functions: tuple[str, ...]
    """The functions, methods and classes that changed, if both sides know theirs; see `code.definition_digests`."""


def files_of(manifest: Mapping[str, Any]) -> Files:
    """The raw files of a finished step."""
    formats = {
        source: {digest: format_ for digest, format_, _ in files}
        for source, files in manifest["identity"]["raw"].items()
    }
    return {
        source: {file["sha256"]: {**file, "format": formats.get(source, {}).get(file["sha256"])} for file in files}
        for source, files in manifest["raw"].items()
    }


def file_changes(old: Files, new: Files) -> Iterator[FileChange]:
    """The raw files that changed, came or went, by source and path; one that only moved is none."""
    for source in sorted({**old, **new}):
        was, is_ = old.get(source, {}), new.get(source, {})
        gone = {file["path"]: file for digest, file in was.items() if digest not in is_}
        come = {file["path"]: file for digest, file in is_.items() if digest not in was}
        for digest in was.keys() & is_.keys():
            if was[digest]["format"] != is_[digest]["format"]:
                gone[is_[digest]["path"]], come[is_[digest]["path"]] = was[digest], is_[digest]
        for path in sorted({**gone, **come}):
            change: Change = "changed" if path in gone and path in come else "added" if path in come else "removed"
            yield FileChange(source=source, change=change, old=gone.get(path), new=come.get(path))


def code_changes(
    before: Mapping[str, str],
    after: Mapping[str, str],
    old: Mapping[str, Mapping[str, str]],
    new: Mapping[str, Mapping[str, str]],
) -> Iterator[CodeChange]:
    """The modules whose code changed, with the functions in them.

    Args:
        before: digests by module; see `code.code_digests`.
        after: the same of the other side.
        old: digests of functions by module; see `code.definition_digests`.
        new: the same of the other side.
    """
    for module, was, is_ in value_changes(before, after):
        change: Change = "added" if was is None else "removed" if is_ is None else "changed"
        names: list[str] = []
        if module in old and module in new:
            names = [name for name, _, _ in value_changes(old[module], new[module])]
        yield CodeChange(path=module.replace(".", "/") + ".py", change=change, functions=tuple(names))


def value_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, old, new) of every value that differs, by name; None where there is none."""
    for name in sorted({**old, **new}):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


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
