"""Raw input files: a path, folder or glob becomes files with content digests, in one order on every machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args
from urllib.parse import unquote

from infra.errors import UserError
from infra.storage import remote, web
from infra.storage.digests import SETTLED_SECONDS, DigestCache
from infra.storage.files import sha256
from infra.storage.walk import files_at, is_hidden, shown

COPIES = Path("~/.cache/fromzero/cache")
"""Where copies of objects lie that belong to no root."""
RawFormat = Literal["text", "jsonl", "parquet", "csv", "arrow"]
COMPRESSIONS = (".gz", ".zst")
SUFFIXES: dict[str, RawFormat] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawFile:
    """One input file. Its path says where it lies today; only digest and format count in a key."""

    path: str
    digest: str
    """SHA-256 of the file's bytes, 64 hex characters."""
    num_bytes: int
    format: RawFormat
    compression: Literal["gzip", "zstd"] | None
    copy: str | None = None
    """Where each machine keeps its copy, if the file lies on an object store or on the web."""
    mtime_ns: int | None = None
    """Its time of modification when the digest was taken, if that was some seconds ago already: who reads a part of a
    large file compares it, instead of reading all of the file for its digest."""

    @property
    def name(self) -> str:
        """Its path for messages: on one line, whatever signs it has."""
        return shown(self.path)

    @contextlib.contextmanager
    def open_seekable(self) -> Iterator[IO[bytes]]:
        """The file to read parts of, such as a footer; not compared with the digest. An object is not fetched for it.

        Raises:
            OSError: it cannot be read.
            StorageError: the object store does not answer.
        """
        if self.copy is None or Path(self.copy).is_file() or self.path.startswith(web.SCHEMES):
            with self.fetch().open("rb") as stream:
                yield stream
        else:
            with remote.open_seekable(self.path) as stream:
                yield stream

    def fetch(self) -> Path:
        """The file on this machine; the copy of one on an object store is fetched if it is not there, and is sound.

        Raises:
            DataError: the object is another than when the run was planned, or gone.
            StorageError: the object store does not answer.
        """
        if self.copy is None:
            return Path(self.path)
        path = Path(self.copy)
        remote.fetch(self.path, self.digest, path, path.parents[2] / "locks")
        return path


def detect(path: Path, declared: RawFormat | None, where: str) -> tuple[RawFormat, Literal["gzip", "zstd"] | None]:
    """The format and compression of `path`, from `declared` or from its name.

    Raises:
        UserError: the name tells no format and none is declared.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression: Literal["gzip", "zstd"] | None = None
    if suffixes and suffixes[-1] in COMPRESSIONS:
        compression = "gzip" if suffixes.pop() == ".gz" else "zstd"
    if declared is not None:
        return declared, compression
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]], compression
    raise UserError(
        f"{where}: cannot tell the format of {shown(str(path))} from its name; known endings are "
        f"{', '.join(SUFFIXES)} (each also with .gz or .zst); or set format to one of {', '.join(get_args(RawFormat))}"
    )


def resolve(
    pattern: str, declared: RawFormat | None, where: str, digests: DigestCache | None = None
) -> tuple[RawFile, ...]:
    """The files that `pattern` (a file, a folder or a glob) names, ordered by digest, each content once.

    Args:
        pattern: where to look: a path, of which relative ones count from the working directory, or a URI of an object
            store or of one file of the web.
        declared: the format, if the user gave one.
        where: the config key, for messages.
        digests: known digests; without them every file is read.

    Raises:
        UserError: nothing is there, or a format cannot be told.
        StorageError: the object store does not answer.
    """
    if "://" in pattern:
        return _resolve_remote(pattern, declared, where, digests)
    path = Path(pattern).expanduser()
    try:
        found = files_at(path)
    except OSError as error:  # a name that is longer than names may be, a folder that we may not list
        raise UserError(f"{where}: {shown(pattern)} cannot be looked at: {error.strerror}") from error
    if path.is_dir():
        found = [child for child in found if declared or _known(child)]
    if not found:
        what = f"holds no file with a known ending ({', '.join(SUFFIXES)})" if path.is_dir() else "matches no file"
        if path.exists() and not path.is_dir():
            what = "is a pipe, a socket or a device, not a file"
        raise UserError(
            f"{where}: {shown(pattern)} {what} (looked from {Path.cwd()}); put one there, or name another path"
        )
    return _ordered([_local(child, declared, where, digests) for child in found])


def _local(path: Path, declared: RawFormat | None, where: str, digests: DigestCache | None) -> RawFile:
    format_, compression = detect(path, declared, where)
    try:
        before = path.stat()
        digest = digest_file(path, where, digests)
        after = path.stat()
    except OSError as error:
        raise UserError(f"{where}: {shown(str(path))} cannot be read: {error.strerror}") from error
    if _state(before) != _state(after):
        raise UserError(f"{where}: {shown(str(path))} changes while it is read; run again when it is written")
    settled = time.time() - after.st_ctime >= SETTLED_SECONDS
    return RawFile(
        path=str(path.resolve()),
        digest=digest,
        num_bytes=after.st_size,
        format=format_,
        compression=compression,
        mtime_ns=after.st_mtime_ns if settled else None,
    )


def _state(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_size, seen.st_mtime_ns, seen.st_ino


def _resolve_remote(
    pattern: str, declared: RawFormat | None, where: str, digests: DigestCache | None
) -> tuple[RawFile, ...]:
    def is_wanted(name: str) -> bool:
        return not is_hidden(name) and (declared is not None or _known(Path(name)))

    found, is_folder = remote.find(pattern, where, is_wanted, digests)
    if not found:
        what = f"holds no object with a known ending ({', '.join(SUFFIXES)})" if is_folder else "matches no object"
        raise UserError(f"{where}: {pattern} {what}; put one there, or name another")
    copies = (digests.path.parent if digests else COPIES.expanduser()) / "raw"
    files = []
    for one in found:
        name = unquote(one.uri) if one.uri.startswith(web.SCHEMES) else one.uri
        format_, compression = detect(Path(name), declared, where)
        file = RawFile(
            path=one.uri,
            digest=one.digest,
            num_bytes=one.num_bytes,
            format=format_,
            compression=compression,
            copy=str(copies / one.digest),
        )
        files.append(file)
    return _ordered(files)


def _ordered(files: list[RawFile]) -> tuple[RawFile, ...]:
    """By digest, each content once."""
    once: dict[tuple[str, str], RawFile] = {}
    for file in files:
        once.setdefault((file.digest, file.format), file)
    return tuple(once[name] for name in sorted(once))


def look(pattern: str) -> list[tuple[str, int, int]]:
    """(path, size in bytes, time of modification in ns) of the files that `pattern` names, none of them read."""
    if "://" in pattern:
        return []
    found = ((path, path.stat()) for path in files_at(Path(pattern).expanduser()))
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def digest_file(path: Path, where: str = "", digests: DigestCache | None = None) -> str:
    """SHA-256 of the file's bytes, 64 hex characters.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return digests.sha256(path) if digests else sha256(path)
    except OSError as error:
        raise UserError(
            f"{where + ': ' if where else ''}{shown(str(path))} cannot be read: {error.strerror}"
        ) from error


def _known(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return bool(suffixes) and suffixes[-1] in SUFFIXES
