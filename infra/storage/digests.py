"""Digests of raw files, remembered by what the file system says of them, so that a second plan reads no file again.

A file counts as the same while its path, size, modification and change time and inode are the same. A file that was
changed within the last seconds before it was read is not remembered: a second change may fall into the same tick of
the file system's clock, and would not show. An object counts as the same while its URI, size, time and ETag are.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from infra.storage.files import sha256, write_json

SETTLED_SECONDS = 2.0
"""Coarsest tick of the clocks of common file systems (FAT)."""


class DigestCache:
    """SHA-256 by path, kept in one JSON file. Use it within `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_read = 0
        """Files that had to be read."""
        self._known: dict[str, list[int | str]] = {}
        self._changed = False

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[DigestCache]:
        """The cache at `path`; written back at the end if something was added. A damaged one is begun anew."""
        cache = cls(path)
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = dict(json.loads(path.read_bytes()))
            cache._known = {place: seen for place, seen in known.items() if isinstance(seen, list)}
        try:
            yield cache
        finally:  # what was read before a mistake was found is worth as much
            if cache._changed:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, cache._known)

    def sha256(self, path: Path) -> str:
        """SHA-256 of the file's bytes, 64 hex characters.

        Raises:
            OSError: it cannot be read.
        """
        place = str(path.resolve())
        seen = _seen(path)
        known = self.get(place, seen)
        if known is not None:
            return known
        digest = sha256(path)
        settled = time.time() - int(seen[2]) / 1e9 >= SETTLED_SECONDS  # the change time alone cannot be set
        if settled and _seen(path) == seen:
            self.put(place, seen, digest)
        else:
            self.num_read += 1
        return digest

    def get(self, place: str, seen: list[int | str]) -> str | None:
        """The digest of what lies at `place`, if it is as it was `seen`."""
        known = self._known.get(place)
        return str(known[-1]) if known is not None and known[:-1] == seen else None

    def put(self, place: str, seen: list[int | str], digest: str) -> None:
        """Remembers the digest of what was read, and how it was seen before and after."""
        self.num_read += 1
        self._known[place] = [*seen, digest]
        self._changed = True


def _seen(path: Path) -> list[int | str]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
