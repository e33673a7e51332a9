"""`status`: the runs of a root, told from its files."""

from __future__ import annotations

import os
import time
from typing import NoReturn

from rich.table import Table

from infra.journal import runs
from infra.storage.store import Store
from pipelines.cli.console import clock
from pipelines.cli.output import emit_json, guarded, stdout_console
from pipelines.compose import load_config

MAX_ROWS = 20


def status_command(pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Lists runs, newest first; closes those whose process died."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        store = Store.open(config.storage.root, config.storage.local, writes=False)
        if store.objects or os.access(store.root, os.W_OK):  # in somebody else's root, its owner's next run does it
            runs.close_dead(store)
        records = list(runs.load_all(store))
        if as_json:
            documents = [record.model_dump(mode="json") for record in records[:MAX_ROWS]]
            emit_json({"root": store.uri, "runs": documents, "errors": []})
            return 0
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("run", "pipeline", "status", "started", "took", "steps", "problem"):
            table.add_column(name, overflow="fold")
        for record in records[:MAX_ROWS]:
            ended = record.finished_at or time.time()
            started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started_at))
            made = sum(step.status == "ran" for step in record.steps)
            table.add_row(
                record.id,
                record.pipeline,
                record.status,
                started,
                clock(ended - record.started_at),
                f"{made} ran, {len(record.steps) - made} other",
                "; ".join(record.errors),
            )
        nothing = f"no runs under {store.uri}" + ("" if store.root.is_dir() else ", which does not exist")
        stdout_console().print(table if records else nothing)
        return 0

    guarded(work, as_json=as_json, frame={"root": None, "runs": []})
