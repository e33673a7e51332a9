"""Which files a folder or a glob names: each once, in one order, whatever links lie there.

Links to folders are followed, a folder that was seen already is not entered again: a loop ends, and so do two links
that lead to each other (of 40 levels `glob.glob` would walk 2^40 paths). A folder that Hugging Face `datasets` wrote
(`save_to_disk`) gives the files that its `state.json` names, and none of what lies beside them.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

WILDCARDS = "*?["


def files_at(path: Path) -> list[Path]:
    """The files at `path`: itself, those below it, or those that it is a glob of. Only regular files: a pipe would wait
    for its writer for ever.

    Raises:
        OSError: a folder cannot be listed, or a name is longer than names may be.
    """
    if path.is_file():  # before the glob: a file may have [ or * in its name
        return [path]
    if path.is_dir():
        return [path / name for name in of_datasets(_below(path), _reader(path)) if not is_hidden(name)]
    parts = path.parts
    if "**" not in parts:
        return sorted(Path(name) for name in glob.glob(str(path)) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
    fixed = Path(*parts[: next(index for index, part in enumerate(parts) if is_glob(part))])
    patterns = parts[len(fixed.parts) :]
    return [fixed / name for name in _below(fixed) if matches(name.split("/"), patterns)] if fixed.is_dir() else []


def _below(folder: Path) -> list[str]:
    """Regular files below `folder`, relative to it, ordered."""
    return sorted(name for name in _walk(folder) if (folder / name).is_file())


def _walk(folder: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        found = (folder / prefix).stat()
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        links = []
        with os.scandir(folder / prefix) as listed:
            for entry in sorted(listed, key=lambda entry: entry.name, reverse=True):
                if not _is_dir(entry):
                    yield prefix + entry.name
                elif entry.is_symlink():
                    links.append(f"{prefix}{entry.name}/")
                else:
                    waiting.append(f"{prefix}{entry.name}/")
        waiting = links + waiting  # a folder goes by its own name, if it has one here


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def shown(path: str) -> str:
    """`path` on one line of valid Unicode, for messages: a name may hold line ends and bytes that are no UTF-8."""
    path = path.encode("utf-8", "backslashreplace").decode()
    return "".join(repr(sign)[1:-1] if unicodedata.category(sign) == "Cc" else sign for sign in path)


def is_glob(name: str) -> bool:
    """Whether it has a wildcard."""
    return any(sign in name for sign in WILDCARDS)


def is_hidden(name: str) -> bool:
    """Whether it, or a folder that it lies in, begins with a dot: what rsync and others have not finished copying."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """As the shell: `**` stands for any folders, and only a dot stands for a dot at the start of a name."""
    if not patterns or not parts:
        return not patterns and not parts
    if patterns[0] == "**":
        visible = not parts[0].startswith(".")
        rest = patterns[1:] or ("*",)
        return matches(parts, rest) or (visible and matches(parts[1:], patterns))
    fits = fnmatch.fnmatchcase(parts[0], patterns[0]) and parts[0].startswith(".") <= patterns[0].startswith(".")
    return fits and matches(parts[1:], patterns[1:])


def of_datasets(names: Iterable[str], read: Callable[[str], bytes | None]) -> list[str]:
    """`names` without what Hugging Face `datasets` keeps beside its data: indices, caches, shards of an older save.

    Args:
        names: files below one folder, relative to it, with `/`.
        read: the bytes of one of them; None where it is gone.
    """
    names = list(names)
    allowed: dict[str, set[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in ("state.json", "dataset_dict.json"):
            state = _object(read(name))
            listed = state.get("_data_files" if last == "state.json" else "splits")
            if isinstance(listed, list):
                allowed[folder] = {str(one.get("filename") if isinstance(one, dict) else one) for one in listed}
    if not allowed:
        return names
    return [name for name in names if all(_is_listed(name, folder, listed) for folder, listed in allowed.items())]


def _is_listed(name: str, folder: str, listed: set[str]) -> bool:
    below = name.removeprefix(f"{folder}/") if folder else name
    return (bool(folder) and below == name) or below.partition("/")[0] in listed


def _object(data: bytes | None) -> dict[str, object]:
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _reader(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except OSError:
            return None

    return read
