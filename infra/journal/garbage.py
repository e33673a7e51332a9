"""What under a root, and in MLflow of it, nobody needs any more.

Needed is all that a version of a registered model or prompt was made from (an alias stands on one), that the last runs
planned or made, that an acceptance names, or that still waits for its delivery to MLflow; each with all that it was
made from. The rest goes: first out of the record of what MLflow has, then out of MLflow, then out of storage, and run
records last. So a kill in between leaves what the next `gc` finishes and what `run` repairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from infra.errors import DamagedArtifactError
from infra.journal import runs
from infra.journal.acceptance import accepted_keys
from infra.journal.runs import RunRecord
from infra.storage.store import DAMAGED, REMOVED, Store
from infra.storage.units import FOLDER as UNITS
from infra.storage.units import key_of, unit_paths
from infra.storage.work import spent
from infra.tracking.delivered import Delivered
from infra.tracking.garbage import HeldModel, HeldRun, Holdings, TrackedStore, local_files, path_of_uri
from infra.tracking.lineage import reach

Kind = Literal["mlflow model", "mlflow run", "artifact", "unit", "work folder", "rubbish", "run record"]
_KEYS = re.compile(rb'"(?:key|fromzero\.key)":\s*"([0-9a-f]{32})"')
_HALF = re.compile(r"\..+\.[0-9a-f]{8}")
"""Of `files.write_atomic`."""
_RUNS = re.compile(rb'"id":\s*"([^"/]+)')


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that goes."""

    kind: Kind
    name: str
    reason: str
    paths: tuple[Path, ...]
    """Where its bytes lie, as far as they lie on this machine."""
    num_bytes: int = 0
    """What its removal gives back: a file with several names counts once, where the last of them goes too."""
    held: tuple[HeldRun | HeldModel, ...] = ()
    """What is to be deleted in MLflow, in this order."""
    tracked: TrackedStore | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What stays and what goes."""

    num_kept: int
    """Artifacts that stay."""
    keys: frozenset[str]
    """Of all steps that are needed."""
    items: tuple[Item, ...]
    """In the order in which they go."""


def survey(store: Store, stores: Sequence[TrackedStore], keep_runs: int) -> Survey:
    """Looks what of the root `store` is needed.

    Args:
        store: the root; nothing else may work there.
        stores: all MLflow stores that it was delivered to.
        keep_runs: how many of the newest runs stay, whatever became of them.

    Raises:
        InfrastructureError: MLflow does not answer.
    """
    facts = _Facts(store, [(one, one.read()) for one in stores], keep_runs)
    items = [*facts.models(), *facts.step_runs(), *facts.pipeline_runs()]
    items += [*facts.artifacts(), *facts.units(), *facts.work_folders(), *facts.rubbish(), *facts.records()]
    return Survey(
        num_kept=sum(folder.name in facts.keys for folder in facts.folders),
        keys=frozenset(facts.keys),
        items=tuple(_with_sizes(items, store.object_sizes())),
    )


def remove(store: Store, found: Survey) -> Iterator[Item]:
    """Takes away what goes; yields each item when it is gone.

    Raises:
        InfrastructureError, StorageError: something cannot be removed; it and what follows it is still there.
    """
    if found.items:
        for delivered in Delivered.everywhere(store.root, store.objects):
            delivered.keep(found.keys)
    for item in found.items:
        if item.tracked is None:
            for path in item.paths:
                store.remove(path)
        else:
            for held in item.held:
                item.tracked.delete(held)
        yield item
    for tracked in {item.tracked for item in found.items if item.tracked}:
        tracked.compact()


class _Facts:
    """What is there, and what of it is needed."""

    def __init__(self, store: Store, tracked: list[tuple[TrackedStore, Holdings]], keep_runs: int) -> None:
        self.store = store
        self.tracked = tracked
        last = "the last run" if keep_runs == 1 else f"one of the last {keep_runs} runs"
        self.unneeded = "needed by no registered model or prompt" + (f", and not by {last}" if keep_runs else "")
        self.spent = "nothing that it made is left" + (f", and it is not {last}" if keep_runs else "")
        self.folders = sorted({*store.places("artifacts"), *store.copies("artifacts")})
        self.manifests = dict(_manifests(store, self.folders))
        self._records = list(runs.load_all(store))
        recent = [r for position, r in enumerate(self._records) if position < keep_runs or r.status == "RUNNING"]
        waiting_runs, waiting_keys = _waiting(store)
        self._recent_runs = {record.id for record in recent} | waiting_runs
        starts = {*waiting_keys, *accepted_keys(store), *(key for _, one in tracked for key in one.registered)}
        starts |= {key for record in recent for key in _keys_of(record)}
        starts |= {key for key, made in self.manifests.items() if made["made_by_run"] in self._recent_runs}
        starts |= set(self._registered_elsewhere())
        self.keys = reach(starts, [*self._edges()])
        """Of all steps that are needed."""
        self._steps = [(one, name, group) for one, holdings in tracked for name, group in _by_step(holdings)]
        """Store, our own id and runs of every step run with its trials."""
        self._mine = self._my_runs()
        self._kept_runs = self._recent_runs | {
            *(made["made_by_run"] for key, made in self.manifests.items() if key in self.keys),
            *(name.partition("/")[0] for _, name, group in self._steps if not self._goes(name, group)),
        }

    def _edges(self) -> Iterator[tuple[str, str]]:
        """(key, key of an input), from the manifests, and from MLflow for artifacts that are damaged or gone."""
        for key, content in self.manifests.items():
            yield from ((key, entry["key"]) for entry in content["inputs"].values())
        for _, holdings in self.tracked:
            yield from ((run.key, digest) for run in holdings.runs if run.key for digest in run.inputs)

    def _my_runs(self) -> set[str]:
        """Our own ids of this root's pipeline runs: MLflow may hold those of other roots too, and a copied root has the
        records of the one that it was copied from."""
        recorded = {record.id for record in self._records if self.store.is_at(record.root)}
        return recorded | {
            name.partition("/")[0]
            for _, name, group in self._steps
            if any(run.artifact is not None and self._is_below(run.artifact) for run in group)
        }

    def _goes(self, name: str, group: Sequence[HeldRun]) -> bool:
        """Whether the step run `name`, which comes with its trials, is this root's and not needed."""
        pipeline_run = name.partition("/")[0]
        artifacts = [run.artifact for run in group if run.artifact is not None]
        ours = all(self._is_below(artifact) for artifact in artifacts) if artifacts else pipeline_run in self._mine
        needed = pipeline_run in self._recent_runs or any(run.key in self.keys for run in group)
        return ours and not needed

    def _is_below(self, artifact: str) -> bool:
        places = ("artifacts", "work")  # checkpoints that stay lie in the second
        if self.store.objects:
            return any(artifact.startswith(f"{self.store.uri}/{place}/") for place in places)
        path, root = path_of_uri(artifact).resolve(), self.store.root.resolve()
        return any(path.is_relative_to(root / place) for place in places)

    def _registered_elsewhere(self) -> Iterator[str]:
        """Of a root on an object store: what the SQLite files of other machines were told to register."""
        for one in Delivered.everywhere(self.store.root, self.store.objects):
            if one.is_elsewhere:
                for key in one.run_ids:  # of one whose manifest is damaged nobody knows
                    if key not in self.manifests or any(map(_is_registered, self.manifests[key]["records"])):
                        yield key

    def models(self) -> Iterator[Item]:
        """LoggedModels; before the runs that they come from, so that `run` finds by the run what it has to repair."""
        for tracked, holdings in self.tracked:
            for model in holdings.models:
                if model.key not in self.keys and self._is_below(model.artifact):
                    yield _tracked("mlflow model", model.own_id, self.unneeded, [model], tracked)

    def step_runs(self) -> Iterator[Item]:
        """Runs of steps with their trials; the trials first, because they are found by their step."""
        for tracked, name, group in self._steps:
            if self._goes(name, group):
                held = sorted(group, key=lambda run: (run.own_id == name, run.own_id))
                trials = len({run.own_id for run in group} - {name})
                reason = self.unneeded + (f"; with {trials} trial runs" if trials else "")
                yield _tracked("mlflow run", name, reason, held, tracked)

    def pipeline_runs(self) -> Iterator[Item]:
        """Runs of pipelines none of whose steps is left."""
        for tracked, holdings in self.tracked:
            for run in holdings.runs:
                if "/" not in run.own_id and run.own_id in self._mine - self._kept_runs:
                    yield _tracked("mlflow run", run.own_id, self.spent, [run], tracked)

    def artifacts(self) -> Iterator[Item]:
        """The newest first, so that what is left never lacks what it was made from."""
        gone = [folder for folder in self.folders if folder.name not in self.keys]
        gone.sort(key=lambda folder: self.manifests.get(folder.name, {"finished_at": 0.0})["finished_at"], reverse=True)
        for folder in gone:
            yield Item(kind="artifact", name=_name(folder), reason=self.unneeded, paths=(folder,))

    def units(self) -> Iterator[Item]:
        """Units of work that no artifact that stays was made from, those of one kind as one item."""
        named = {
            (kind, unit)
            for key, content in self.manifests.items()
            if key in self.keys
            for kind, units in content.get("units", {}).items()
            for unit in units
        }
        gone: dict[str, list[Path]] = {}
        base = self.store.root / UNITS
        for path in unit_paths(base, self.store.mirror):
            kind = path.relative_to(base).parts[0]
            if (kind, key_of(path)) not in named:
                gone.setdefault(kind, []).append(path)
        for kind, paths in sorted(gone.items()):
            reason = "no artifact that stays was made from them"
            yield Item(kind="unit", name=f"{len(paths)} of {kind}", reason=reason, paths=tuple(paths))

    def work_folders(self) -> Iterator[Item]:
        """Those whose step is not needed, or finished; of the latter the checkpoints on record stay."""
        for folder in sorted({*self.store.places("work"), *self.store.copies("work")}):
            if folder.name not in self.keys:
                yield Item(kind="work folder", name=_name(folder), reason=self.unneeded, paths=(folder,))
            elif self._is_finished(folder) and (paths := self._spent(folder)):
                yield Item(kind="work folder", name=_name(folder), reason="its step is finished", paths=paths)

    def _spent(self, work: Path) -> tuple[Path, ...]:
        records = self.manifests[work.name]["records"] if work.name in self.manifests else []
        return spent(self.store.mirror, work, records)

    def _is_finished(self, work: Path) -> bool:
        try:
            return self.store.find(work.parent.name, work.name) is not None
        except DamagedArtifactError:  # the step runs again, and goes on from what is in the folder
            return False

    def rubbish(self) -> Iterator[Item]:
        """All under temporary/: nothing works there now."""
        for path in sorted((self.store.root / "temporary").iterdir()):
            reason = "rubbish of a killed attempt"
            if path.name.startswith(DAMAGED):
                reason = "a damaged artifact that was set aside"
            elif path.name.startswith(REMOVED):
                reason = "the rest of a gc that was killed"
            yield Item(kind="rubbish", name=path.name, reason=reason, paths=(path,))
        for path in sorted(path for name in ("runs", "spool", "tracking") for path in self._half_written(name)):
            yield Item(
                kind="rubbish", name=path.name, reason="half of a file, of a process that was killed", paths=(path,)
            )
        for path in sorted((self.store.root / "cache" / "raw").glob("*")):
            reason = "a copy of a raw file on an object store"
            yield Item(kind="rubbish", name=path.name, reason=reason, paths=(path,))
        running = {key for record in self._records if record.status == "RUNNING" for key in _keys_of(record)}
        for path in self.store.leftovers(self.manifests):
            key = path.parent.name
            if key in self.keys - running:  # the others go whole, or are on their way up
                name = f"{_name(path.parent)}/{path.name}"
                yield Item(kind="rubbish", name=name, reason="rubbish of a killed upload", paths=(path,))

    def _half_written(self, folder: str) -> Iterator[Path]:
        return (path for path in (self.store.root / folder).glob(".*") if _HALF.fullmatch(path.name))

    def records(self) -> Iterator[Item]:
        """Records of runs that are not recent and have nothing left."""
        for record in self._records:
            if record.id not in self._kept_runs:
                path = runs.path_of(self.store, record.id)
                yield Item(kind="run record", name=record.id, reason=self.spent, paths=(path,))


def _by_step(holdings: Holdings) -> Iterator[tuple[str, list[HeldRun]]]:
    """(our own id, runs) of each step run; its trials' ids begin with its own."""
    found: dict[str, list[HeldRun]] = {}
    for run in holdings.runs:
        if "/" in run.own_id:
            found.setdefault("/".join(run.own_id.split("/")[:2]), []).append(run)
    yield from found.items()


def _tracked(kind: Kind, name: str, reason: str, held: Sequence[HeldRun | HeldModel], tracked: TrackedStore) -> Item:
    paths = tuple(folder for one in held if (folder := local_files(one.location)))
    return Item(kind=kind, name=name, reason=reason, paths=paths, held=tuple(held), tracked=tracked)


def _manifests(store: Store, folders: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder, content in store.read_manifests(folders):
        if not isinstance(content, DamagedArtifactError):  # one that is damaged is known by its folder alone
            yield folder.name, {"inputs": {}, "made_by_run": None, "finished_at": 0.0, "records": [], **content}


def _is_registered(record: Mapping[str, Any]) -> bool:
    return record["type"] == "prompt" or bool(record.get("registered_name"))


def _keys_of(record: RunRecord) -> set[str]:
    return {*record.planned.values(), *(step.key for step in record.steps)}


def _waiting(store: Store) -> tuple[set[str], set[str]]:
    """Runs and keys in messages that MLflow has not taken yet."""
    found_runs: set[str] = set()
    found_keys: set[str] = set()
    for spool in runs.leftover_spools(store):
        with spool.path.open("rb") as stream:
            stream.seek(spool.position)
            for line in stream:
                found_runs |= {match.decode() for match in _RUNS.findall(line)}
                found_keys |= {match.decode() for match in _KEYS.findall(line)}
    return found_runs, found_keys


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _with_sizes(items: Sequence[Item], on_objects: Mapping[Path, int]) -> Iterator[Item]:
    """`items` with their sizes, those on an object store included."""
    files = [[stat for path in item.paths for stat in _stats(path)] for item in items]
    names = Counter((stat.st_dev, stat.st_ino) for stats in files for stat in stats)
    counted = set()
    for item, stats in zip(items, files, strict=True):
        num_bytes = sum(on_objects.get(path, 0) for path in item.paths)
        for stat in stats:
            inode = (stat.st_dev, stat.st_ino)
            if inode not in counted and names[inode] >= stat.st_nlink:
                counted.add(inode)
                num_bytes += stat.st_size
        yield replace(item, num_bytes=num_bytes)


def _stats(path: Path) -> Iterator[Any]:
    if not path.exists() and not path.is_symlink():  # on an object store alone
        return
    found = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    yield from (one.lstat() for one in found if one.is_symlink() or one.is_file())
