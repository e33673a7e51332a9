"""What an MLflow store holds of a root, and how a part of that is taken out of it.

`mlflow gc` (3.17.2) is not used: it asks nothing about registered models, and where runs are named to it, it removes
for good every deleted experiment of the store too, whosoever that is. What it does for one run or model is done here
for those of this root. A server can only be told to delete; `mlflow gc` on its side brings the space back.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from infra.cluster.environment import apply, run_environment
from infra.errors import InfrastructureError
from infra.storage.objects import ObjectStore
from infra.tracking.delivered import Delivered, creation_times
from infra.tracking.tracker import Destination, database_of
from infra.tracking.writer import ID_TAG, KEY_TAG, URI_TAG

PAGE = 1000
ARTIFACT = re.compile(r"/artifacts/[a-z][a-z0-9_]*/([0-9a-f]{32})")
"""The key in a path of an artifact."""
PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldRun:
    """A run that carries our id: `RUN` of a pipeline, `RUN/STEP` of a step, `RUN/STEP/TRIAL` of a trial."""

    id: str
    """MLflow's."""
    own_id: str
    key: str | None
    artifact: str | None
    """Where the step's artifact was when it was delivered; None before its step is finished, and for the others."""
    inputs: frozenset[str]
    """Digests of its inputs: keys of the steps that made them, and digests of raw files."""
    location: str
    """URI of its files in MLflow."""
    is_deleted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldModel:
    """A LoggedModel of ours."""

    id: str
    own_id: str
    key: str
    artifact: str
    location: str
    is_deleted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """All that carries our ids in one store, of whichever root."""

    runs: tuple[HeldRun, ...]
    models: tuple[HeldModel, ...]
    registered: frozenset[str]
    """Keys of the steps that made a version of a registered model or prompt."""


class TrackedStore:
    """One MLflow server or database, which is there already.

    Args:
        uri: where it is.
        remedy: what to do where it does not answer.

    Raises:
        InfrastructureError: it cannot be opened.
    """

    def __init__(self, uri: str, remedy: str) -> None:
        self.uri = uri
        self.remedy = remedy
        with self._answering("nothing was removed"):
            apply(run_environment())
            from mlflow import MlflowClient

            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            # The methods that remove for good are on the store alone, where `mlflow gc` calls them too.
            self._database: Any = None if self.is_server else self.client._tracking_client.store

    @property
    def is_server(self) -> bool:
        """Whether deleted runs and models stay there until somebody runs `mlflow gc` on its side."""
        return self.uri.startswith("http")

    def read(self) -> Holdings:
        """What is there now.

        Raises:
            InfrastructureError: the store does not answer.
        """
        from mlflow.entities import ViewType

        with self._answering("nothing was removed"):
            found = _pages(lambda token: self.client.search_experiments(page_token=token))
            experiments = [str(experiment.experiment_id) for experiment in found]
            # Of what a server has deleted nothing more can be taken away.
            view = ViewType.ACTIVE_ONLY if self.is_server else ViewType.ALL
            runs = tuple(
                _held_run(found)
                for found in _pages(
                    lambda token: self.client.search_runs(
                        experiments, f"tags.`{ID_TAG}` LIKE '%'", view, max_results=PAGE, page_token=token
                    )
                )
            )
            models = tuple(
                HeldModel(
                    id=str(found.model_id),
                    own_id=found.tags[ID_TAG],
                    key=found.tags[KEY_TAG],
                    artifact=found.tags[URI_TAG],
                    location=str(found.artifact_location),
                    is_deleted=is_deleted,
                )
                for found, is_deleted in self._models(experiments)
                if {ID_TAG, KEY_TAG, URI_TAG} <= found.tags.keys()
            )
            return Holdings(runs=runs, models=models, registered=frozenset(self._registered(runs, models)))

    def delete(self, held: HeldRun | HeldModel) -> None:
        """Takes a run or LoggedModel away with its files: for good in a database, as deleted on a server.

        Raises:
            InfrastructureError: the store does not answer.
        """
        is_run = isinstance(held, HeldRun)
        with self._answering("what was not removed yet is still there; run gc again"):
            if not held.is_deleted:
                self.client.delete_run(held.id) if is_run else self.client.delete_logged_model(held.id)
            if self._database:
                _delete_files(held.location)
                hard = self._database._hard_delete_run if is_run else self._database._hard_delete_logged_model
                hard(held.id)

    def compact(self) -> None:
        """Gives what was freed inside a SQLite file back to the disk; not while somebody else reads it."""
        if not self.uri.startswith("sqlite:"):
            return
        path = self.uri.removeprefix("sqlite:///")
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("VACUUM")

    def _models(self, experiments: list[str]) -> Iterator[tuple[Any, bool]]:
        for found in _pages(lambda token: self.client.search_logged_models(experiments, page_token=token)):
            yield found, False
        if self._database:
            for model_id in self._database._get_deleted_logged_models():
                yield self._database.get_logged_model(model_id, allow_deleted=True), True

    def _registered(self, runs: Iterable[HeldRun], models: Iterable[HeldModel]) -> Iterator[str]:
        """By the version's own tag; by its source or run where somebody registered what we had logged."""
        key_of = {run.id: run.key for run in runs} | {f"models:/{model.id}": model.key for model in models}
        search = self.client.search_model_versions
        versions = _pages(lambda token: search(page_token=token))
        prompts = _pages(lambda token: search(PROMPTS, page_token=token))
        for version in itertools.chain(versions, prompts):
            candidates = [version.tags.get(KEY_TAG), key_of.get(version.source), key_of.get(version.run_id)]
            yield from (key for key in (*candidates, *ARTIFACT.findall(version.source or "")) if key)

    @contextlib.contextmanager
    def _answering(self, state: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # telemetry boundary: MLflow raises whatever its database or its network raise
            told = (str(error).splitlines() or [type(error).__name__])[0].partition(" with exception ")[0]
            raise InfrastructureError(f"MLflow at {self.uri} failed: {told}; {state}. {self.remedy}") from error


def stores_of(root: Path, destination: Destination, objects: ObjectStore | None = None) -> list[TrackedStore]:
    """The MLflow stores that something was delivered to from `root`, `destination` first; not the SQLite files of other
    machines.

    Raises:
        InfrastructureError: one does not answer, or is not the one that it was.
    """
    everywhere = Delivered.everywhere(root, objects)
    known = {one.uri: one for one in everywhere if one.run_ids and not one.is_elsewhere}
    here = creation_times(destination.database)
    before = known.pop(destination.uri, None)
    if before and not Delivered.load(root, destination, objects).run_ids:
        raise InfrastructureError(
            f"MLflow at {destination.uri} is not the store that {root} was delivered to, so nobody knows what is "
            "registered; nothing was removed. fromzero sync fills the new one"
        )
    found = []
    if _may_be_there(destination.uri):
        found.append(TrackedStore(destination.uri, "Start it, or say where it is with tracking.uri="))
    for uri, one in known.items():
        remedy = f"Start it, or, if it is gone for good, remove {one.place}"
        path = database_of(uri)
        if path and one.identity not in creation_times(path):
            if not path.exists() and one.identity in here:
                continue  # it is `destination`: the root was moved
            state = "is not the store that it was" if path.exists() else "is not there"
            raise InfrastructureError(
                f"MLflow at {uri} {state}, and {root} was delivered to it, so nobody knows what is registered; nothing "
                f"was removed. {remedy.replace('Start it', 'Bring it back')}"
            )
        found.append(TrackedStore(uri, remedy))
    return found


def _may_be_there(uri: str) -> bool:
    path = database_of(uri)
    return path is None or path.exists()


def local_files(location: str) -> Path | None:
    """The folder of a run's or model's files, if it lies on this machine."""
    return path_of_uri(location) if urlparse(location).scheme in ("", "file") else None


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return


def _held_run(run: Any) -> HeldRun:
    tags = run.data.tags
    return HeldRun(
        id=str(run.info.run_id),
        own_id=tags[ID_TAG],
        key=tags.get(KEY_TAG),
        artifact=tags.get(URI_TAG),
        inputs=frozenset(str(one.dataset.digest) for one in run.inputs.dataset_inputs),
        location=str(run.info.artifact_uri),
        is_deleted=run.info.lifecycle_stage == "deleted",
    )


def _delete_files(location: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(location).delete_artifacts()
    folder = local_files(location)
    if folder is not None:  # MLflow leaves the folder around it
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def path_of_uri(uri: str) -> Path:
    """The file or folder that a `file:` URI or a path names."""
    return Path(unquote(urlparse(uri).path)) if uri.startswith("file:") else Path(uri)
