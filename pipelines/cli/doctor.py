"""`doctor`: what a run needs of this machine, checked one by one, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from infra.cluster.environment import apply, run_environment
from infra.errors import DamagedArtifactError, FromzeroError
from infra.journal import runs
from infra.storage import manifest
from infra.storage.store import Store
from infra.tracking.locations import destination
from pipelines.cli.console import byte_progress
from pipelines.cli.output import emit_json, guarded, stdout_console
from pipelines.compose import load_config
from pipelines.config import PipelineConfig

GIB = 1024**3
TESTED = {"ray": "2.60", "torch": "2.13", "deepspeed": "0.19", "transformers": "5.23", "mlflow": "3.17"}
MIN_DISK_GIB = 3
MIN_MEMORY_GIB = 6
"""The default's processes together took 5.4 GiB at their peak, in pretrain_mlm (sum of proportional set sizes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str


def doctor_command(pipeline: str, overrides: list[str], *, verify: bool, as_json: bool) -> NoReturn:
    """Prints every finding; exit 3 if one is an error. With `verify` every file under a manifest is read."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        checks = list(_checks(config, verify))
        failed = any(check.status == "error" for check in checks)
        if as_json:
            errors = [f"{check.name}: {check.detail}" for check in checks if check.status == "error"]
            emit_json({"checks": [asdict(check) for check in checks], "errors": errors})
        else:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for name in ("check", "status", "detail"):
                table.add_column(name, overflow="fold")
            for check in checks:
                style = {"ok": "green", "warning": "yellow", "error": "red"}[check.status]
                table.add_row(check.name, Text(check.status, style=style), check.detail)
            stdout_console().print(table)
        return 3 if failed else 0

    guarded(work, as_json=as_json, frame={"checks": []})


def _checks(config: PipelineConfig, verify: bool) -> Iterator[Check]:
    yield Check(
        name="python", status="ok" if sys.version_info >= (3, 11) else "error", detail=platform.python_version()
    )
    yield from _libraries()
    cores = os.cpu_count() or 1
    wish = config.cluster.min_workers * config.cluster.threads_per_worker
    enough = config.cluster.address is not None or wish <= cores
    yield Check(
        name="cpus",
        status="ok" if enough else "warning",
        detail=f"{cores} here; a training takes {wish} (cluster.num_workers x cluster.threads_per_worker)",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Check(
        name="memory",
        status="ok" if memory >= MIN_MEMORY_GIB else "warning",
        detail=f"{memory:.0f} GiB; the default wants {MIN_MEMORY_GIB}",
    )
    try:
        store = Store.open(config.storage.root, config.storage.local)
    except FromzeroError as error:
        yield Check(name="root", status="error", detail=str(error))
        return
    free = shutil.disk_usage(store.root).free / GIB
    places = f"{store.uri}, on this machine {store.root}" if store.objects else str(store.root)
    yield Check(
        name="root",
        status="ok" if free >= MIN_DISK_GIB else "warning",
        detail=f"{places}, {free:.0f} GiB free; the default wants {MIN_DISK_GIB}",
    )
    shared = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").exists() else None
    if shared is not None:
        need = config.cluster.object_store_memory_mib / 1024
        yield Check(
            name="shared memory",
            status="ok" if shared >= need else "warning",
            detail=f"/dev/shm has {shared:.1f} GiB free; Ray's object store takes {need:.1f}",
        )
    yield from _files(store, verify)
    dead = runs.close_dead(store)
    yield Check(
        name="runs",
        status="ok",
        detail=f"closed as KILLED: {', '.join(r.id for r in dead)}" if dead else "none left running by the dead",
    )
    yield _tracking(config, store)


def _libraries() -> Iterator[Check]:
    for name, tested in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=name, status="error", detail="not installed: make install")
            continue
        same = found.startswith(tested)
        yield Check(
            name=name,
            status="ok" if same else "warning",
            detail=found if same else f"{found}; tested with {tested}: see constraints.txt",
        )


@dataclass(kw_only=True, slots=True)
class _Folders:
    """Folders with manifests, of one kind."""

    name: str
    remedy: str
    store: Store
    manifests: dict[Path, dict[str, Any]] = field(default_factory=dict)
    damage: list[tuple[Path, str]] = field(default_factory=list)

    def read(self, folders: Iterable[Path]) -> None:
        """Reads the manifests alone."""
        for folder, content in self.store.read_manifests(sorted(folders)):
            if isinstance(content, DamagedArtifactError):
                self.damage.append((folder, str(content)))
            else:
                self.manifests[folder] = content

    @property
    def num_bytes(self) -> int:
        """As the manifests say."""
        return sum(file["num_bytes"] for content in self.manifests.values() for file in content["files"].values())

    def verify(self, advance: Callable[[int], None]) -> None:
        """Reads every file."""
        for folder, content in self.manifests.items():
            for num_bytes, problem in self.store.check(folder, content):
                advance(num_bytes)
                if problem:
                    self.damage.append((folder, problem))

    def checks(self, verified: bool) -> Iterator[Check]:
        """A summary, and what is wrong one by one."""
        bad = len({folder for folder, _ in self.damage})
        state = "every file agrees with its manifest" if verified else "the files are compared by --verify"
        state = f"{bad} damaged or missing" if bad else state
        detail = f"{len(self.manifests)}, {decimal(self.num_bytes)}; {state}"
        yield Check(name=self.name, status="error" if bad else "ok", detail=detail)
        for folder, problem in self.damage:
            _, step, key, *_ = folder.relative_to(self.store.root).parts
            yield Check(name=f"{step}/{key[:12]}", status="error", detail=f"{problem}; {self.remedy}")


def _files(store: Store, verify: bool) -> Iterator[Check]:
    """Artifacts and checkpoints."""
    artifacts = _Folders(name="artifacts", remedy="the next run that needs it makes it again", store=store)
    artifacts.read(store.places("artifacts"))
    artifacts.damage += _missing(store, artifacts.manifests)
    checkpoints = _Folders(name="checkpoints", remedy="its step goes on from the one before it", store=store)
    within = (path.parent for path in store.files("work") if path.name == manifest.NAME)
    checkpoints.read(folder for folder in within if not folder.name.startswith("damaged"))  # those are set aside
    if verify:
        with byte_progress("verified", artifacts.num_bytes + checkpoints.num_bytes) as advance:
            artifacts.verify(advance)
            checkpoints.verify(advance)
    yield from artifacts.checks(verify)
    if checkpoints.manifests or checkpoints.damage:  # there are none when all steps have come to their end
        yield from checkpoints.checks(verify)


def _missing(store: Store, manifests: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Artifacts that are not there though others were made from them."""
    heirs = {
        store.artifact_folder(entry["step"], entry["key"]): folder
        for folder, content in manifests.items()
        for entry in content["inputs"].values()
    }
    there = set(store.places("artifacts"))
    for folder, heir in sorted(heirs.items()):
        if folder not in there:
            yield (
                folder,
                f"{store.mirror.uri(folder)} is missing, and {heir.parent.name}/{heir.name[:12]} was made from it",
            )


def _tracking(config: PipelineConfig, store: Store) -> Check:
    target = destination(config.tracking, store.root)
    if target.database and not target.database.exists():
        return Check(name="mlflow store", status="ok", detail=f"{target.uri} will be made by the first run")
    apply(run_environment())
    try:
        writer = target.open()
        return Check(
            name="mlflow store",
            status="ok",
            detail=f"{target.uri}, experiment {target.experiment} is number {writer.experiment_id}",
        )
    except Exception as error:  # a check reports whatever MLflow raises instead of dying of it
        return Check(name="mlflow store", status="error", detail=target.told(error))
