"""`doctor`: what a run needs of this machine, checked one by one, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from rich.table import Table
from rich.text import Text

from infra.cluster.environment import apply, run_environment
from infra.errors import FromzeroError
from infra.journal import runs
from infra.storage import manifest
from infra.storage.store import Store
from infra.tracking.locations import destination
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


def doctor_command(pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Prints every finding; exit 3 if one is an error."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        checks = list(_checks(config))
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


def _checks(config: PipelineConfig) -> Iterator[Check]:
    yield Check(
        name="python", status="ok" if sys.version_info >= (3, 11) else "error", detail=platform.python_version()
    )
    yield from _libraries()
    cores = os.cpu_count() or 1
    wish = config.cluster.num_workers * config.cluster.threads_per_worker
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
        store = Store.open(config.storage.root)
    except FromzeroError as error:
        yield Check(name="root", status="error", detail=str(error))
        return
    free = shutil.disk_usage(store.root).free / GIB
    yield Check(
        name="root",
        status="ok" if free >= MIN_DISK_GIB else "warning",
        detail=f"{store.root}, {free:.0f} GiB free; the default wants {MIN_DISK_GIB}",
    )
    shared = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").exists() else None
    if shared is not None:
        need = config.cluster.object_store_memory_mib / 1024
        yield Check(
            name="shared memory",
            status="ok" if shared >= need else "warning",
            detail=f"/dev/shm has {shared:.1f} GiB free; Ray's object store takes {need:.1f}",
        )
    yield _artifacts(store)
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


def _artifacts(store: Store) -> Check:
    good, bad = 0, []
    for folder in sorted((store.root / "artifacts").glob("*/*")):
        try:
            manifest.verify(folder)
            good += 1
        except FromzeroError as error:
            bad.append(str(error))
    detail = "; ".join(bad) + "; the next run makes them again" if bad else f"{good} verified"
    return Check(name="artifacts", status="warning" if bad else "ok", detail=detail)


def _tracking(config: PipelineConfig, store: Store) -> Check:
    target = destination(config.tracking, store.root)
    if target.uri.startswith("sqlite:") and not Path(target.uri.removeprefix("sqlite:///")).exists():
        return Check(name="mlflow store", status="ok", detail=f"{target.uri} will be made by the first run")
    apply(run_environment())
    from infra.tracking.writer import Writer

    try:
        writer = Writer(target.uri, target.experiment, target.artifact_location)
        return Check(
            name="mlflow store",
            status="ok",
            detail=f"{target.uri}, experiment {target.experiment} is number {writer.experiment_id}",
        )
    except Exception as error:  # a check reports whatever MLflow raises instead of dying of it
        return Check(name="mlflow store", status="error", detail=f"{target.uri}: {str(error).splitlines()[0]}")
