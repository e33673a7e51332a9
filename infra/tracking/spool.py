"""The spool: every message to MLflow is a line on disk before anything else happens to it.

One JSON-lines file a pipeline run. The uploader reads from a byte position that is kept beside it, so a process that
died, or a server that was away for a week, costs nothing but delay. A line that cannot be read is copied to
`<name>.damaged`, named in a warning, and passed over.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.storage.files import write_atomic

logger = logging.getLogger(__name__)
SUFFIX = ".jsonl"


class Spool:
    """One run's messages. One process appends; the same or a later one delivers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position_path = path.with_suffix(".delivered")
        self.position = int(self._position_path.read_text() or 0) if self._position_path.exists() else 0

    def append(self, message: Mapping[str, Any]) -> None:
        """Writes one message; it is in the operating system's hands when this returns.

        Raises:
            OSError: the disk is full or gone.
        """
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
        with self.path.open("ab") as stream:
            if stream.tell() and not self._ends_with_newline():
                stream.write(b"\n")  # a writer died inside a line: it stays alone, and is set aside when read
            stream.write(line)

    def sync(self) -> None:
        """Makes what was appended outlive a power cut."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self, max_messages: int = 500, *, final: bool = False) -> tuple[list[dict[str, Any]], int]:
        """The next undelivered messages, and the position after them.

        Args:
            max_messages: at most this many.
            final: nobody appends any more, so a last line without its end is a damaged line.
        """
        messages: list[dict[str, Any]] = []
        position = self.position
        if not self.path.exists():
            return messages, position
        with self.path.open("rb") as stream:
            stream.seek(position)
            while len(messages) < max_messages and (line := stream.readline()):
                if not line.endswith(b"\n") and not final:
                    break
                try:
                    message = json.loads(line)
                    messages.append({**message, "kind": str(message["kind"]), "id": str(message["id"])})
                except (ValueError, KeyError, TypeError) as error:
                    self._set_aside(line, position, error)
                position += len(line)
        return messages, position

    def advance(self, position: int) -> None:
        """Remembers that all before `position` is delivered."""
        if position != self.position:
            write_atomic(self._position_path, str(position).encode())
            self.position = position

    @property
    def pending_bytes(self) -> int:
        """Bytes not delivered yet."""
        return (self.path.stat().st_size if self.path.exists() else 0) - self.position

    def remove(self) -> None:
        """Deletes a spool that is delivered whole."""
        self.path.unlink(missing_ok=True)
        self._position_path.unlink(missing_ok=True)

    def reject(self, message: Mapping[str, Any], error: Exception) -> None:
        """Keeps a message that MLflow will never take, with its reason."""
        line = json.dumps({"error": str(error), "message": message}, ensure_ascii=False)
        with self.path.with_suffix(".rejected").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def _set_aside(self, line: bytes, position: int, error: Exception) -> None:
        aside = self.path.with_suffix(".damaged")
        logger.warning("%s: the line at byte %d is damaged (%s); kept in %s", self.path, position, error, aside)
        with aside.open("ab") as stream:
            stream.write(line if line.endswith(b"\n") else line + b"\n")

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"


def spools(folder: Path) -> list[Spool]:
    """All spools of `folder`, oldest first."""
    return [Spool(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
