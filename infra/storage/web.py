"""Single files at http(s) URLs, through fsspec: how the server sees them, their digest, a copy.

The bytes count as they lie there: nothing that is called `.gz` is unpacked on the way. There are no folders and no
globs, for the web has no listing; name files one by one. No user, password or query in a URL: it is shown in messages
and kept in manifests.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from infra.errors import DamagedArtifactError, StorageError, UserError
from infra.storage.files import storage_error

SCHEMES = ("http://", "https://")
CHUNK_BYTES = 4 << 20
CONNECT_SECONDS = 30.0
SILENT_SECONDS = 60.0
"""A server that sends nothing for so long is away."""


def look(url: str, where: str) -> list[int | str]:
    """What the server says of a file: bytes (0 where it does not say), time of the last change, ETag.

    Args:
        url: of a file.
        where: the config key, for messages.

    Raises:
        UserError: a secret or a query in the URL, or no such file.
        StorageError: the server does not answer.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"{where}: no user, query or fragment in a URL ({parts.scheme}://...); fetch the file first")
    if not parts.netloc or not parts.path.rpartition("/")[2]:
        raise UserError(f"{where}: {url} is not https://HOST/FILE; name one file, for the web has no listing")
    with _told(url, where):
        info = _filesystem().info(url)
    return [int(info.get("size") or 0), str(info.get("Last-Modified", "")), str(info.get("ETag", ""))]


def sha256(url: str, where: str) -> tuple[str, int]:
    """SHA-256 of a file, 64 hex characters, and its bytes; it is kept nowhere.

    Raises:
        UserError: no such file.
        StorageError: the server does not answer.
    """
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in _chunks(url, where):
        digest.update(chunk)
        num_bytes += len(chunk)
    return digest.hexdigest(), num_bytes


def download(url: str, digest: str, target: Path) -> None:
    """Writes a file to `target`.

    Raises:
        DamagedArtifactError: it is gone, or its SHA-256 is not `digest`.
        StorageError: the server does not answer.
    """
    found = hashlib.sha256()
    try:
        with target.open("wb") as stream:
            for chunk in _chunks(url, url):
                found.update(chunk)
                stream.write(chunk)
    except StorageError:
        raise
    except UserError as error:
        raise DamagedArtifactError(str(error)) from error
    except OSError as error:
        raise storage_error(error, target) from error
    if found.hexdigest() != digest:
        raise DamagedArtifactError(f"{url} has another SHA-256")


def _chunks(url: str, where: str) -> Iterator[bytes]:
    with _told(url, where):
        stream: IO[bytes]
        with _filesystem().open(url, "rb", block_size=0) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


@functools.lru_cache(maxsize=1)
def _filesystem() -> Any:
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    return HTTPFileSystem(
        headers={"Accept-Encoding": "identity"},
        client_kwargs={"timeout": timeout, "auto_decompress": False},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@contextlib.contextmanager
def _told(url: str, where: str) -> Iterator[None]:
    """What the server or the network says, as our own error."""
    from aiohttp import ClientError, ClientResponseError

    try:
        yield
    except (ClientError, OSError, TimeoutError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = cause.status if isinstance(cause, ClientResponseError) else None
        if status in (401, 403, 404, 410) or (isinstance(cause, FileNotFoundError) and status is None):
            raise UserError(f"{where}: {url}: the server has no such file for us ({status or 404})") from error
        what = f"status {status}" if status else " ".join(str(cause).split()) or type(cause).__name__
        raise StorageError(f"{url}: {what[:200]}; see that the server is up, then run again") from error
