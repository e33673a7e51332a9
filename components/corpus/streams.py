"""Units of raw files as streams of bytes, plain, gzip or zstd, in memory that does not grow with the file.

Whatever makes a file as a whole unusable (cut short, changed since the run was planned) is a `DataError` that names the
file. That it is the one that was planned is told so that nothing is committed under the key of another text:

- a file that is one unit, by its SHA-256 before it is read, a second reading at 1.8 GB/s;
- a part of a file by size and time of modification, as they were when the plan took the digest, since 10 GB would
  otherwise be read 320 times; by its SHA-256, once a process, where the time says nothing (changed seconds before the
  plan, or on another machine). Who changes a file and sets its time back is not noticed;
- at the end of either, by size, time and inode as at its start: a file that grows or goes while it is read is told.
"""

from __future__ import annotations

import errno
import functools
import gzip
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from components.corpus.rows import ReadLimits
from components.corpus.units import Unit
from infra.errors import DataError, StorageError
from infra.storage.digests import SETTLED_SECONDS
from infra.storage.files import sha256
from infra.storage.raw import RawFile

CHUNK_BYTES = 1 << 20


class Readable(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@contextmanager
def reading(file: RawFile) -> Iterator[None]:
    """Turns what libraries raise while they read `file` into our errors.

    Raises:
        DataError: the bytes are damaged, or the file is gone.
        StorageError: the file cannot be read, though it could when the run was planned.
    """
    kind = file.compression or file.format
    try:
        yield
    except (DataError, StorageError):
        raise
    except EOFError as error:
        raise DataError(f"{file.name}: the {kind} data end too early; the file is truncated") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file.name}: not valid gzip data ({error}); make the file again") from error
    except (MemoryError, OverflowError) as error:  # pyarrow's too
        raise DataError(
            f"{file.name}: the {file.format} data claim a size that does not fit into memory; make the file again"
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"{file.name}: damaged {file.format} data ({_one_line(error)}); make the file again") from error
    except OSError as error:
        if error.errno is None:  # pyarrow raises a bare OSError for damaged data
            cause = "truncated" if "Truncated" in str(error) else _one_line(error)
            raise DataError(f"{file.name}: damaged {kind} data ({cause}); make the file again") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise _changed(file, "it is gone") from error
        raise StorageError(f"{file.name} cannot be read: {error.strerror}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _changed(file: RawFile, how: str) -> DataError:
    return DataError(
        f"{file.name}: has changed since the run was planned ({how}); leave the files alone while a run reads them, "
        "and run again"
    )


@contextmanager
def opened(unit: Unit) -> Iterator[IO[bytes]]:
    """The file of `unit` as it lies there, at its first byte; closed after a look at whether it is still the same.

    Raises:
        DataError: the file is another than when the run was planned, or changes while it is read.
        StorageError: it cannot be opened.
    """
    file = unit.file
    path = file.fetch()
    with reading(file):
        before = _state(file, path)
        if file.copy is None and not _is_as_planned(unit, path, before):
            raise _changed(file, f"{before[0]} bytes, {file.num_bytes} then")
        with path.open("rb") as stream:
            try:
                yield stream
            except DataError as error:  # what looks damaged may be half written
                if _state(file, path) != before:
                    raise _changed(file, "while it was read") from error
                raise
            if _state(file, path) != before:
                raise _changed(file, "while it was read")


def _state(file: RawFile, path: Path) -> tuple[int, ...]:
    """Size, times of modification and change in ns, inode."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
        raise _changed(file, "it is no file any more")
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _is_as_planned(unit: Unit, path: Path, state: tuple[int, ...]) -> bool:
    file = unit.file
    if state[0] != file.num_bytes:
        return False
    if unit.is_whole:
        return sha256(path) == file.digest
    if file.mtime_ns == state[1]:
        return True
    settled = time.time() - state[2] / 1e9 >= SETTLED_SECONDS
    return (_digest_once if settled else _digest)(path, state) == file.digest


def _digest(path: Path, state: tuple[int, ...]) -> str:
    return sha256(path)


_digest_once = functools.lru_cache(maxsize=256)(_digest)


@contextmanager
def open_bytes(unit: Unit, limits: ReadLimits) -> Iterator[Readable]:
    """The decompressed bytes of a file.

    Raises:
        DataError: as `opened`; or compressed data of no length, or of more than `limits.max_decompressed_bytes`.
        StorageError: it cannot be opened.
    """
    file = unit.file
    with opened(unit) as raw, reading(file):
        if file.compression is None:
            yield raw
            return
        if not file.num_bytes:
            raise DataError(f"{file.name}: no {file.compression} data at all; the file is truncated")
        if file.compression == "gzip":
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield _Capped(stream, file, limits)
        else:
            with pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as compressed:
                yield _Capped(compressed, file, limits)


@contextmanager
def open_seekable(unit: Unit, limits: ReadLimits) -> Iterator[IO[bytes]]:
    """The same for who must seek: what is compressed as a whole is decompressed into a temporary file on disk."""
    if unit.file.compression is None:
        with opened(unit) as raw:
            yield raw
        return
    with tempfile.TemporaryFile() as stream:
        with open_bytes(unit, limits) as source:
            while chunk := source.read(CHUNK_BYTES):
                stream.write(chunk)
        stream.seek(0)
        yield stream


def raise_too_large(file: RawFile, num_bytes: int, limits: ReadLimits) -> None:
    """Raises DataError if `num_bytes`, what a file decompresses to, are more than it may."""
    if num_bytes > limits.max_decompressed_bytes:
        raise DataError(
            f"{file.name}: {file.num_bytes} bytes decompress to more than {limits.where}.max_decompressed_bytes "
            f"({limits.max_decompressed_bytes}); raise it if the file is what it should be"
        )


class _Capped:
    """A stream that may give only so many bytes."""

    def __init__(self, stream: Any, file: RawFile, limits: ReadLimits) -> None:
        self._stream, self._file, self._limits, self._num_bytes = stream, file, limits, 0

    def read(self, size: int, /) -> bytes:
        data: bytes = self._stream.read(size)
        self._num_bytes += len(data)
        raise_too_large(self._file, self._num_bytes, self._limits)
        return data


class RangeReader:
    """The bytes of the lines that begin in [start, end) of a file, of which others read the rest.

    A line begins at byte 0 and after each line feed.
    """

    def __init__(self, stream: IO[bytes], start: int, end: int) -> None:
        self._stream, self._end = stream, end
        self.position = max(0, start - 1)
        """Where the next bytes lie in the file."""
        self._is_done = False
        stream.seek(self.position, os.SEEK_SET)
        if start:
            self._skip_line()

    def _skip_line(self) -> None:
        while self.position < self._end and (chunk := self._stream.read(CHUNK_BYTES)):
            newline = chunk.find(b"\n")
            if newline >= 0:
                self.position += newline + 1
                break
            self.position += len(chunk)
        else:
            self._is_done = True
        self._is_done |= self.position >= self._end
        self._stream.seek(self.position)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end of the last line that begins in the range."""
        if self._is_done:
            return b""
        left = self._end - self.position
        chunk = self._stream.read(min(size, left) if left > 0 else size)
        if left > 0:
            self._is_done = len(chunk) == left and chunk.endswith(b"\n")
        else:
            newline = chunk.find(b"\n")
            if newline >= 0:
                chunk, self._is_done = chunk[: newline + 1], True
        self.position += len(chunk)
        return chunk
