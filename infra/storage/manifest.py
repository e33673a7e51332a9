"""`manifest.json`: the last file of an artifact, with every other file's size and digest.

A folder without one, or with one that does not match, is not an artifact. A manifest carries the SHA-256 of its own
content, so that a number that changed in it is noticed as one in a file is. With `FROMZERO_SIGNING_KEY` set it carries
an HMAC-SHA256 too, and one without a valid HMAC is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import DamagedArtifactError
from infra.storage.files import sha256, write_json

FORMAT_VERSION = 2
NAME = "manifest.json"
SEALS = ("content_sha256", "hmac_sha256")
"""What a manifest says of the rest of itself."""
SIGNING_KEY_VARIABLE = "FROMZERO_SIGNING_KEY"


def list_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file below `folder` but the manifest, by relative path, in order."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {path.relative_to(folder).as_posix(): entry(path) for path in paths}


def entry(path: Path) -> dict[str, int | str]:
    """Size and SHA-256 of one file."""
    return {"num_bytes": path.stat().st_size, "sha256": sha256(path)}


def write(folder: Path, content: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes the manifest of `folder`, sealed, and signed if a key is set, and returns it.

    Args:
        folder: all its files are there, and synced.
        content: what the manifest says beside them.
        files: `list_files(folder)`, if it is known already.
    """
    manifest = sealed({"format_version": FORMAT_VERSION, **content, "files": files or list_files(folder)})
    write_json(folder / NAME, manifest)
    return manifest


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its digest, and its HMAC if a signing key is set."""
    signature = _signature(content)
    return {**content, "content_sha256": _digest(content), **({"hmac_sha256": signature} if signature else {})}


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, its signature checked, its files not.

    Raises:
        DamagedArtifactError: it is missing, not JSON, of another format version, or not sealed or signed as it must be.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedArtifactError(f"{path} is missing or damaged: {error}") from error
    return parse(data, str(path))


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The manifest in `data`, its signature checked.

    Args:
        data: what `manifest.json` holds.
        where: for messages.

    Raises:
        DamagedArtifactError: as `read`.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
        version = manifest["format_version"]
        files = manifest["files"]
        sound = all(isinstance(e["num_bytes"], int) and isinstance(e["sha256"], str) for e in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtifactError(f"{where} is missing or damaged: {error}") from error
    if not sound:
        raise DamagedArtifactError(f"{where} is damaged: a file without size and digest")
    if version != FORMAT_VERSION:
        raise DamagedArtifactError(f"{where} has format version {version}; this code reads {FORMAT_VERSION}")
    if manifest.get("content_sha256") != _digest(manifest):
        raise DamagedArtifactError(f"{where} differs from the SHA-256 of its content that it carries")
    signature = _signature(manifest)
    if signature and not hmac.compare_digest(signature, str(manifest.get("hmac_sha256", ""))):
        raise DamagedArtifactError(f"{where} is not signed with the key in {SIGNING_KEY_VARIABLE}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of `folder` after every file was checked by size and digest.

    Raises:
        DamagedArtifactError: names the first file that differs.
    """
    manifest = read(folder)
    for _, damage in check(folder, manifest):
        if damage:
            raise DamagedArtifactError(damage)
    return manifest


def check_artifact(path: Path, key: str) -> list[str] | None:
    """Verifies the artifact with the key `key` that `path` lies in, and names its files below `path`; None where it is
    not on this machine.

    Raises:
        DamagedArtifactError: it is damaged.
    """
    folder = next((place for place in path.parents if key and place.name == key and place.is_dir()), None)
    if folder is None:
        return None
    files = [folder / name for name in verify(folder)["files"]]
    return [str(file.relative_to(path)) for file in files if file.is_relative_to(path)]


def check(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[int, str | None]]:
    """Compares every file of `folder` with its manifest: its recorded size in bytes, and what is wrong with it."""
    for name, recorded in manifest["files"].items():
        path = folder / name
        damage = None
        try:
            if not path.is_file() or path.stat().st_size != recorded["num_bytes"]:
                damage = f"{path} is missing or has another size than its manifest says"
            elif sha256(path) != recorded["sha256"]:
                damage = f"{path} differs from its manifest (SHA-256)"
        except OSError as error:
            damage = f"{path} cannot be read: {error.strerror}"
        yield recorded["num_bytes"], damage


def _signature(manifest: Mapping[str, Any]) -> str | None:
    key = os.environ.get(SIGNING_KEY_VARIABLE)
    if not key:
        return None
    return hmac.new(key.encode("utf-8"), _canonical(manifest), hashlib.sha256).hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(manifest)).hexdigest()


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    """The content without its seals, the same from Python and from JSON."""
    content = {name: value for name, value in manifest.items() if name not in SEALS}
    return json.dumps(content, sort_keys=True, ensure_ascii=True).encode("ascii")
