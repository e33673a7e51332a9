"""Raw files as streams of bytes and of lines, plain, gzip or zstd, in memory that does not grow with the file.

Whatever makes a file as a whole unusable (not UTF-8, cut short, changed since the run was planned) is a `DataError`
that names the file and, where there is one, the byte. That it changed is told by its digest before it is read: a
second reading, at 1.8 GB/s, so that nothing is committed under the key of another text.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from infra.errors import DataError, StorageError
from infra.storage.files import sha256
from infra.storage.raw import RawFile

CHUNK_BYTES = 1 << 20


@contextmanager
def reading(file: RawFile) -> Iterator[None]:
    """Turns what libraries raise while they read `file` into our errors.

    Raises:
        DataError: the bytes are damaged.
        StorageError: the file cannot be read, though it could when the run was planned.
    """
    try:
        yield
    except EOFError as error:
        raise DataError(f"{file.path}: the {file.compression} data end too early; the file is truncated") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file.path}: not valid gzip data ({error}); make the file again") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path}: damaged {file.format} data ({_one_line(error)}); make the file again") from error
    except OSError as error:
        if error.errno is None:  # pyarrow raises a bare OSError for damaged data
            cause = "truncated" if "Truncated" in str(error) else _one_line(error)
            kind = file.compression or file.format
            raise DataError(f"{file.path}: damaged {kind} data ({cause}); make the file again") from error
        raise StorageError(f"{file.path} cannot be read: {error.strerror}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def open_bytes(file: RawFile) -> Iterator[BinaryIO]:
    """The decompressed bytes of `file`.

    Raises:
        DataError: the file is another than when the run was planned, or compressed data of no length.
        StorageError: it cannot be opened.
    """
    path = file.fetch()
    with reading(file):
        num_bytes = path.stat().st_size
        if file.copy is None and (num_bytes != file.num_bytes or sha256(path) != file.digest):
            raise DataError(
                f"{file.path}: has changed since the run was planned ({num_bytes} bytes, {file.num_bytes} then); "
                "leave the files alone while a run reads them, and run again"
            )
        if file.compression and not num_bytes:
            raise DataError(f"{file.path}: no {file.compression} data at all; the file is truncated")
        if file.compression == "gzip":
            with gzip.open(path, "rb") as stream:
                yield cast(BinaryIO, stream)
        elif file.compression == "zstd":
            with pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd") as compressed:
                yield compressed
        else:
            with path.open("rb") as plain:
                yield plain


def read_lines(file: RawFile) -> Iterator[str]:
    """The lines of `file` without their ends; only line feeds end a line, so U+2028 in a JSON string does not.

    Raises:
        DataError: not UTF-8, naming the byte; or damaged compressed data.
        StorageError: the file cannot be read.
    """
    offset = 0
    held: list[bytes] = []
    with open_bytes(file) as stream, reading(file):
        while chunk := stream.read(CHUNK_BYTES):
            complete, newline, rest = chunk.rpartition(b"\n")
            if not newline:
                held.append(chunk)
                continue
            block = b"".join((*held, complete))
            yield from _decode(file, block, offset).split("\n")
            offset += len(block) + 1
            held = [rest] if rest else []
        if held:
            yield from _decode(file, b"".join(held), offset).split("\n")


def _decode(file: RawFile, block: bytes, offset: int) -> str:
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise DataError(
            f"{file.path}: not UTF-8 at byte {position}{' of the decompressed text' if file.compression else ''} "
            f"(0x{block[error.start]:02x}); convert it, for example: iconv -f GB18030 -t UTF-8"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text
