"""What is known to be in an MLflow store, kept in ROOT/tracking/, so that a run that reuses everything need not ask.

A file for each tracking URI: the MLflow run of each step key, and which key each alias stands on. For a SQLite file the
creation time of our experiment says whether it is still the same store; a server is trusted until `sync` asks it.

On an object store the files of all machines lie together, so that what one has delivered to a server every other knows,
and `gc` knows of the SQLite files on other machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import StorageError
from infra.storage.files import write_json
from infra.storage.objects import ObjectStore
from infra.tracking.tracker import Destination

Manifest = Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class Delivered:
    """What one store has of one root."""

    path: Path
    uri: str
    identity: str | None
    run_ids: dict[str, str] = field(default_factory=dict)
    """MLflow run by step key."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Step key by `name@alias`."""
    host: str | None = None
    """The machine that a SQLite file lies on, where the root is on an object store."""
    objects: ObjectStore | None = None
    """Of the root, if it is on an object store."""

    @classmethod
    def load(cls, root: Path, destination: Destination, objects: ObjectStore | None = None) -> Delivered:
        """What was delivered to `destination`; nothing if it is another store now."""
        host = socket.gethostname() if objects and destination.database else None
        place = destination.uri + (f" on {host}" if host else "")
        path = root / "tracking" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
        found = cls(path=path, uri=destination.uri, identity=_identity(destination), host=host, objects=objects)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            content = json.loads(_read(path, objects))
            if found.identity is not None and content["identity"] == found.identity:
                found.run_ids, found.aliases = dict(content["run_ids"]), dict(content["aliases"])
        return found

    @property
    def place(self) -> str:
        """Where the file lies."""
        return f"{self.objects.uri}/tracking/{self.path.name}" if self.objects else str(self.path)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a SQLite file of another machine."""
        return self.host not in (None, socket.gethostname())

    @classmethod
    def everywhere(cls, root: Path, objects: ObjectStore | None = None) -> list[Delivered]:
        """What was delivered from `root`, store by store; whether each is still the same store is not asked.

        Raises:
            StorageError: a file cannot be read.
        """
        found = []
        folder = root / "tracking"
        paths = [folder / name for name in objects.sizes("tracking")] if objects else folder.glob("*.json")
        for path in sorted(paths):
            try:
                content = json.loads(_read(path, objects))
                names = ("uri", "identity", "run_ids", "aliases")
                host = content.get("host")
                found.append(cls(path=path, host=host, objects=objects, **{name: content[name] for name in names}))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StorageError(
                    f"{objects.uri if objects else root}/tracking/{path.name} is damaged ({error}); remove it, then "
                    "fromzero sync writes it anew"
                ) from error
        return found

    def has(self, manifests: Iterable[Manifest]) -> bool:
        """Whether all these steps are there, with their aliases."""
        return all(
            manifest["key"] in self.run_ids
            and all(self.aliases.get(alias) == manifest["key"] for alias in aliases(manifest))
            for manifest in manifests
        )

    def add(self, manifests: Iterable[Manifest], run_ids: Mapping[str, str]) -> None:
        """Remembers a delivery that was complete.

        Args:
            manifests: of the steps that were delivered, those with an alias last delivered last.
            run_ids: MLflow run by our own id.
        """
        for manifest in manifests:
            run_id = run_ids.get(f"{manifest['made_by_run']}/{manifest['step']}")
            if run_id:
                self.run_ids[manifest["key"]] = run_id
                for alias in aliases(manifest):
                    self.aliases[alias] = str(manifest["key"])
        self._save()

    def keep(self, keys: Collection[str]) -> None:
        """Forgets all steps but those with one of `keys`."""
        self.run_ids = {key: run for key, run in self.run_ids.items() if key in keys}
        self.aliases = {alias: key for alias, key in self.aliases.items() if key in keys}
        self._save()

    def _save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        content = {"uri": self.uri, "identity": self.identity, "run_ids": self.run_ids, "aliases": self.aliases}
        write_json(self.path, {**content, "host": self.host} if self.host else content)
        if self.objects:
            self.objects.upload(self.path.parent, [self.path.name], "tracking")


def _read(path: Path, objects: ObjectStore | None) -> bytes:
    """What the file holds; nothing where it is not there, or cannot be read."""
    if objects:
        return objects.read(f"tracking/{path.name}") or b""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def aliases(manifest: Manifest) -> list[str]:
    """`name@alias` of every model of a step that takes one."""
    return [
        f"{record['registered_name']}@{record['alias']}"
        for record in manifest["records"]
        if record["type"] == "model" and record["registered_name"] and record["alias"]
    ]


def creation_times(database: Path | None) -> set[str]:
    """Of all experiments in a SQLite store, one of which is its identity; none where it is not there."""
    if database is None or not database.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return {str(time) for (time,) in connection.execute("SELECT creation_time FROM experiments")}
    except sqlite3.Error:
        return set()


def _identity(destination: Destination) -> str | None:
    """What tells a store from another under the same URI; None if it is not there."""
    path = destination.database
    if path is None:
        return destination.uri
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT creation_time FROM experiments WHERE name = ?"
            row = database.execute(query, (destination.experiment,)).fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None
