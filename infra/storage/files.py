"""Small durable writes: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from infra.errors import DiskFullError, StorageError, UserError


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` is the old file or the new one, never a part.

    Raises:
        DiskFullError, StorageError: it could not be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, atomically; keys keep their order."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace"))  # a file name that is no UTF-8 becomes JSON's own \\u


def fsync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path) -> Exception:
    """The project's error for what the operating system said about `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space left on the disk of {path}; free some, then run again: finished steps are kept")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"storage.root: {path} cannot be written ({error.strerror}); choose another with storage.root="
        )
    return StorageError(f"{path}: {error.strerror or error}")
