"""The spool: every message to MLflow is a line on disk before anything else happens to it.

One JSON-lines file a pipeline run. The uploader reads from a byte position that is kept beside it, so a process that
died, or a server that was away for a week, costs nothing but delay. A line that cannot be read is moved to
`<name>.damaged`, a message that MLflow refuses to `<name>.rejected`; both are counted and named to the user.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from infra.storage.files import write_atomic
from infra.tracking.schema import is_message

SUFFIX = ".jsonl"
DAMAGED = "damaged lines of the spool"
REJECTED = "messages that MLflow refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of the spool."""

    raw: bytes
    start: int
    """Byte position of its first character."""
    message: dict[str, Any] | None
    """None for a damaged line."""

    @property
    def end(self) -> int:
        """Byte position after it."""
        return self.start + len(self.raw)

    @property
    def kind(self) -> str | None:
        """Of the message."""
        return self.message["kind"] if self.message else None


class Spool:
    """One run's messages. One process appends; the same or a later one delivers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delivered_path = path.with_suffix(".delivered")
        self._kept_aside: Counter[tuple[str, str]] = Counter()

    def append(self, message: Mapping[str, Any]) -> None:
        """Writes one message; it is in the operating system's hands when this returns.

        Raises:
            OSError: the disk is full or gone.
        """
        line = _line(message)
        with self.path.open("ab") as stream:
            if stream.tell() and not self._ends_with_newline():
                stream.write(b"\n")  # a writer died inside a line: it stays alone, and is set aside when read
            stream.write(line)

    @classmethod
    def written(cls, path: Path, messages: Iterable[Mapping[str, Any]]) -> Spool:
        """A new spool of all these messages, which nobody sees before it is whole.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomic(path, b"".join(map(_line, messages)))
        return cls(path)

    def sync(self) -> None:
        """Makes what was appended outlive a power cut."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())

    def lines(self, start: int = 0, *, final: bool = False) -> Iterator[Line]:
        """The lines from byte `start` on.

        Args:
            start: the beginning of a line.
            final: nobody appends any more, so a last line without its end is a damaged line.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(start)
            while raw := stream.readline():
                if not raw.endswith(b"\n") and not final:
                    return
                yield Line(raw=raw, start=start, message=_parsed(raw))
                start += len(raw)

    def read(self, max_lines: int = 500, *, final: bool = False) -> list[Line]:
        """The next undelivered lines, at most `max_lines`; for `final` see `lines`."""
        return list(islice(self.lines(self.position, final=final), max_lines))

    @property
    def position(self) -> int:
        """All before this byte is delivered. Read anew each time: another process may have delivered since."""
        return self._delivered()[0]

    @property
    def run_ids(self) -> dict[str, str]:
        """MLflow run by our own id, of all that is delivered."""
        return self._delivered()[1]

    def advance(self, position: int, run_ids: Mapping[str, str]) -> None:
        """Remembers that all before `position` is delivered, to these runs among others."""
        delivered, known = self._delivered()
        if position != delivered:
            content = {"position": position, "run_ids": known | dict(run_ids)}
            write_atomic(self._delivered_path, json.dumps(content).encode())

    @property
    def pending_bytes(self) -> int:
        """Bytes not delivered yet."""
        return self._size - self.position

    def remove(self) -> None:
        """Deletes a spool that is delivered whole."""
        self._delivered_path.unlink(missing_ok=True)  # first: without it the rest is delivered again, and nothing lost
        self.path.unlink(missing_ok=True)

    def set_aside(self, line: Line) -> None:
        """Keeps a damaged line."""
        self._keep(DAMAGED, line.raw.rstrip(b"\n"))

    def reject(self, message: Mapping[str, Any], error: Exception) -> None:
        """Keeps a message that MLflow will never take, with its reason."""
        self._keep(REJECTED, _line({"error": str(error), "message": message}).rstrip(b"\n"))

    @property
    def kept_aside(self) -> list[str]:
        """For the user, how much of what lies in which file."""
        return [f"{number} {what}, kept in {path}" for (what, path), number in self._kept_aside.items()]

    def _keep(self, what: str, line: bytes) -> None:
        path = self.path.with_suffix(".damaged" if what == DAMAGED else ".rejected")
        with path.open("ab") as stream:
            stream.write(line + b"\n")
        self._kept_aside[what, str(path)] += 1

    def _delivered(self) -> tuple[int, dict[str, str]]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._delivered_path.read_bytes())
            position = int(content["position"])
            if 0 <= position <= self._size:
                return position, dict(content["run_ids"])
        return 0, {}

    @property
    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"


def spools(folder: Path) -> list[Spool]:
    """All spools of `folder`, oldest first."""
    return [Spool(path) for path in sorted(folder.glob(f"*{SUFFIX}")) if path.is_file()]


def _line(message: Mapping[str, Any]) -> bytes:
    """A message as a line; half of a surrogate pair, as in a file name that is no UTF-8, becomes `?`."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
        return message if is_message(message) else None
    except (ValueError, RecursionError):
        return None
