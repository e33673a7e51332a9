"""`gc`: takes away what nobody needs any more, in storage and in MLflow alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.filesize import decimal
from rich.table import Table

from infra.errors import LockedError
from infra.journal import runs
from infra.journal.garbage import Item, remove, survey
from infra.journal.lock import alone, exclusive
from infra.journal.process import ProcessIdentity
from infra.storage.store import Store
from infra.tracking.garbage import stores_of
from infra.tracking.locations import destination
from pipelines.cli.console import byte_progress
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.compose import load_config

SHOWN_CHARACTERS = 12
"""Of a key, in the table."""


def gc_command(pipeline: str, overrides: list[str], *, keep_runs: int, dry_run: bool, as_json: bool) -> NoReturn:
    """Prints what goes, and removes it unless `dry_run`."""
    frame: dict[str, Any] = {"root": None, "kept": 0, "removed": [], "num_bytes": 0, "dry_run": dry_run}

    def work() -> int:
        config = load_config(pipeline, overrides)
        store = Store.open(config.storage.root, config.storage.local)
        frame["root"] = store.uri
        runs.close_dead(store)
        with contextlib.ExitStack() as held:
            _hold(store, held)
            if dry_run:
                held.close()  # so that a run that starts now is not refused
            where = destination(config.tracking, store.root)
            found = survey(store, stores_of(store.root, where, store.objects), keep_runs)
            frame["kept"] = found.num_kept
            if dry_run:
                _add(frame, found.items)
            else:
                with byte_progress("removed", sum(item.num_bytes for item in found.items)) as advance:
                    for item in remove(store, found):
                        _add(frame, [item])
                        advance(item.num_bytes)
        if as_json:
            emit_json({**frame, "errors": []})
        else:
            _print(frame)
        for uri in sorted({item.tracked.uri for item in found.items if item.tracked and item.tracked.is_server}):
            say(f"MLflow at {uri} keeps what is deleted there until `mlflow gc` is run on its side")
        return 0

    guarded(work, as_json=as_json, frame=frame)


def _hold(store: Store, held: contextlib.ExitStack) -> None:
    """Keeps everybody else away from the root, and from MLflow as far as they write there for this root.

    Raises:
        LockedError: somebody works there; names the run where one goes on.
    """
    try:
        held.enter_context(alone(store.root))
    except LockedError as error:
        for record in runs.load_all(store):
            if record.status == "RUNNING":
                holder = ProcessIdentity.parse(record.process) or "a process"
                message = f"run {record.id} ({holder}) is going on under {store.uri}; wait for its end, or stop it"
                raise LockedError(message) from error
        raise
    held.enter_context(exclusive(store.root / "spool" / "writer.lock", "the MLflow store"))


def _add(frame: dict[str, Any], items: Iterable[Item]) -> None:
    for item in items:
        facts = {"kind": item.kind, "name": item.name, "num_bytes": item.num_bytes, "reason": item.reason}
        frame["removed"].append(facts)
        frame["num_bytes"] += item.num_bytes


def _print(frame: dict[str, Any]) -> None:
    console = stdout_console()
    if not frame["removed"]:
        console.print(f"nothing to remove under {frame['root']}; artifacts there: {frame['kept']}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "name", "size", "why it goes"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for facts in frame["removed"]:
        name = "/".join(part[:SHOWN_CHARACTERS] if len(part) == 32 else part for part in facts["name"].split("/"))
        table.add_row(facts["kind"], name, decimal(facts["num_bytes"]), facts["reason"])
    console.print(table)
    verb = "would be removed" if frame["dry_run"] else "removed"
    console.print(f"{len(frame['removed'])} in all, {decimal(frame['num_bytes'])}, {verb}", soft_wrap=True)
    console.print(f"artifacts that stay under {frame['root']}: {frame['kept']}", soft_wrap=True)
