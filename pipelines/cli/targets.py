"""What a user may call a thing of a root by: a model, prompt, step, key, raw file, data set, run or folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cluster.environment import apply, run_environment
from infra.errors import DamagedArtifactError, UserError
from infra.journal import runs
from infra.storage import manifest
from infra.storage.files import sha256
from infra.storage.store import Store
from infra.tracking.champion import find_version
from infra.tracking.locations import destination
from infra.tracking.messages import dataset_name
from infra.tracking.writer import KEY_TAG, URI_TAG
from pipelines.config import PipelineConfig

Manifest = Mapping[str, Any]
LEAST_DIGITS = 8
"""Of a key or digest that is cut short."""
MOST_NAMES = 12
"""Of each kind, in the answer to a wrong target."""
VERSION = re.compile(r"(?:(?P<kind>models|prompts):/)?(?P<name>[^@/:]+)(?:@(?P<alias>[^@/]+)|/(?P<number>\d{1,9}))")
"""Of a registered model or prompt, also in the form of MLflow's URIs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a target names."""

    node: str
    """Its id in the lineage graph."""
    others: tuple[str, ...] = ()
    """Of a run that ends in several steps, those beside `node`."""
    made_by: tuple[Manifest, ...]
    """The step that made it; of a run, those that made models. A raw file has none."""
    store: Store
    """Where these lie."""

    def past(self, step: str, key: str | None) -> Manifest | None:
        """The manifest of a step of the same root; None if it is not there, or damaged."""
        return self.store.manifest(step, str(key))


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """All that a root has, by the names that users see."""

    store: Store
    config: PipelineConfig
    newest: Sequence[Manifest]
    """All manifests, the newest first."""

    @classmethod
    def of(cls, config: PipelineConfig) -> Targets:
        """All that lies under `storage.root`."""
        store = Store.open(config.storage.root, config.storage.local, writes=False)
        return cls(store=store, config=config, newest=list(store.manifests()))

    def find(self, target: str) -> Found:
        """The newest that `target` names. MLflow is asked for versions and aliases alone.

        Raises:
            UserError: there is none; says what there is.
            InfrastructureError: MLflow does not answer.
        """
        searches = (self._models, self._steps, self._raw_files, self._runs, self._folders, self._versions)
        for search in searches:
            for found in search(target):
                return found
        raise UserError(
            f"{target} is no model, prompt, step, key, raw file, run or folder of an artifact under {self.store.uri}; "
            + self._known()
        )

    def _models(self, target: str) -> Iterator[Found]:
        for one in self.newest:
            for record in one["records"]:
                if record["type"] == "model" and target in (record["registered_name"], record["name"]):
                    yield Found(node=_model_node(one, record), made_by=(one,), store=self.store)
                elif record["type"] == "prompt" and target == record["name"]:
                    yield Found(node=f"prompt/{one['key']}/{target}", made_by=(one,), store=self.store)

    def _steps(self, target: str) -> Iterator[Found]:
        for one in self.newest:
            if target == one["step"] or _begins(one["key"], target):
                yield Found(node=_step_node(one), made_by=(one,), store=self.store)

    def _raw_files(self, target: str) -> Iterator[Found]:
        path = Path(target)
        wanted = {target, str(path.resolve())}
        files = [(source, file) for one in self.newest for source, files in one["raw"].items() for file in files]
        for source, file in files:
            names = {file["path"], Path(file["path"]).name, dataset_name(source, file["path"])}
            if names & wanted or _begins(file["sha256"], target):
                yield Found(node=f"raw/{file['sha256']}", made_by=(), store=self.store)
        digest = None
        with contextlib.suppress(OSError):  # a file that was moved or copied is the same by its content
            digest = sha256(path) if files and path.is_file() else None
        if any(file["sha256"] == digest for _, file in files):
            yield Found(node=f"raw/{digest}", made_by=(), store=self.store)

    def _runs(self, target: str) -> Iterator[Found]:
        here = {one["key"]: one for one in self.newest}
        for run in runs.load_all(self.store):
            ids = {step.key: step.run_id for step in run.steps}  # a run that was killed has its plan alone
            done = [(ids.get(key), here[key]) for key in dict.fromkeys([*ids, *run.planned.values()]) if key in here]
            if target in (run.id, run.run_id):
                if not done:
                    raise UserError(f"nothing that run {run.id} planned is under {self.store.uri}; it is {run.status}")
                made = [one for _, one in done]
                models = [one for one in made if any(record["type"] == "model" for record in one["records"])]
                taken = {entry["key"] for one in made for entry in one["inputs"].values()}
                *others, last = [_step_node(one) for one in made if one["key"] not in taken]
                yield Found(node=last, others=tuple(others), made_by=tuple(models or made), store=self.store)
            for run_id, one in done:
                if target == run_id:
                    yield Found(node=_step_node(one), made_by=(one,), store=self.store)

    def _folders(self, target: str) -> Iterator[Found]:
        """A folder of an artifact or in one, also of another root."""
        path = Path(target).resolve()
        try:
            places = [path, path.parent] if path.is_dir() else []
        except OSError:  # no name that a file could have
            places = []
        for folder in places:
            if (folder / manifest.NAME).is_file() and "identity" in (one := manifest.read(folder)):
                models = [record for record in one["records"] if record["type"] == "model"]
                node = _model_node(one, models[0]) if models else _step_node(one)
                yield Found(node=node, made_by=(one,), store=Store(root=folder.parents[2]))

    def _versions(self, target: str) -> Iterator[Found]:
        named = VERSION.fullmatch(target)
        if named is None:
            return
        apply(run_environment())
        where = destination(self.config.tracking, self.store.root)
        prompts = {record["name"] for one in self.newest for record in one["records"] if record["type"] == "prompt"}
        is_prompt = named["kind"] == "prompts" or (named["kind"] is None and named["name"] in prompts)
        version = find_version(where, named["name"], alias=named["alias"], number=named["number"], prompt=is_prompt)
        key = version.tags.get(KEY_TAG)
        for one in (one for one in self.newest if one["key"] == key):
            for record in one["records"]:
                if record["type"] == "model" and record["registered_name"] == named["name"]:
                    yield Found(node=_model_node(one, record), made_by=(one,), store=self.store)
                elif record["type"] == "prompt" and record["name"] == named["name"]:
                    yield Found(node=f"prompt/{key}/{record['name']}", made_by=(one,), store=self.store)
        for place in self.store.places("artifacts"):
            if place.name == key:
                raise DamagedArtifactError(
                    f"{target} was made by {place.parent.name}/{key}, which is damaged: fromzero doctor"
                )
        raise UserError(
            f"{target} was made by the step with key {key}, which is not under {self.store.uri}; "
            f"it was made at {version.tags.get(URI_TAG, 'a place that its tags do not tell')}"
        )

    def _known(self) -> str:
        if not self.newest:
            return "nothing is finished there yet: fromzero run"
        records = [record for one in self.newest for record in one["records"]]
        kinds = {
            "models": [r["registered_name"] or r["name"] for r in records if r["type"] == "model"],
            "prompts": [r["name"] for r in records if r["type"] == "prompt"],
            "steps": [one["step"] for one in reversed(self.newest)],
            "raw files": [
                dataset_name(source, file["path"])
                for one in self.newest
                for source, files in one["raw"].items()
                for file in files
            ],
            "runs": [run.id for run in runs.load_all(self.store)],
        }
        return "there are " + "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _step_node(one: Manifest) -> str:
    return f"{one['step']}/{one['key']}"


def _model_node(one: Manifest, record: Mapping[str, Any]) -> str:
    return f"model/{one['key']}/{record['path']}"


def _begins(whole: str, start: str) -> bool:
    return len(start) >= LEAST_DIGITS and whole.startswith(start)


def _listed(names: Iterable[str]) -> str:
    once = list(dict.fromkeys(names))
    more = f" and {len(once) - MOST_NAMES} more" if len(once) > MOST_NAMES else ""
    return ", ".join(once[:MOST_NAMES]) + more
