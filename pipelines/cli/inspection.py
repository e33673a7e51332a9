"""`status` and `lineage`: what is there, told from the files of ROOT."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from infra.errors import UserError
from infra.journal import runs
from infra.storage.store import Store
from infra.tracking.lineage import Lineage, Node
from pipelines.cli.console import clock
from pipelines.cli.output import emit_json, guarded
from pipelines.compose import load_config

MAX_ROWS = 20


def status_command(pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Lists runs, newest first; closes those whose process died."""

    def work() -> int:
        store = Store.open(load_config(pipeline, overrides).storage.root)
        runs.close_dead(store)
        records = list(runs.load_all(store))
        if as_json:
            documents = [record.model_dump(mode="json") for record in records[:MAX_ROWS]]
            emit_json({"root": str(store.root), "runs": documents, "errors": []})
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
        Console().print(table if records else f"no runs under {store.root}", markup=False)
        return 0

    guarded(work, as_json=as_json, frame={"root": None, "runs": []})


def lineage_command(target: str, pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Prints what `target` was made of."""

    def work() -> int:
        store = Store.open(load_config(pipeline, overrides).storage.root)
        manifests = {
            (manifest["step"], manifest["key"]): manifest
            for folder in sorted((store.root / "artifacts").iterdir())
            for manifest in store.manifests(folder.name)
        }
        graph = Lineage.of(list(manifests.values()), store.root)
        node = _find(target, graph, manifests, store)
        part = graph.up(node.id)
        if as_json:
            emit_json(
                {
                    "target": node.id,
                    "errors": [],
                    "edges": [list(edge) for edge in part.edges],
                    "nodes": [{"id": n.id, "kind": n.kind, "name": n.name, **n.facts} for n in part.nodes],
                }
            )
        else:
            Console(highlight=False).print(_tree(node, part))
        return 0

    guarded(work, as_json=as_json, frame={"target": target, "nodes": [], "edges": []})


def _find(target: str, graph: Lineage, manifests: Mapping[tuple[str, str], Mapping[str, Any]], store: Store) -> Node:
    """The node that `target` names: a registered model (its newest), a step, a key, a run of ours or of MLflow."""
    newest = sorted(manifests.values(), key=lambda manifest: str(manifest["finished_at"]), reverse=True)
    for manifest in newest:
        for record in manifest["records"]:
            if record["type"] == "model" and target in (record["registered_name"], record["name"]):
                return _node(graph, f"model/{manifest['key']}/{record['path']}")
    for manifest in newest:
        if target in (manifest["step"], manifest["key"]) or (len(target) >= 8 and manifest["key"].startswith(target)):
            return _node(graph, f"{manifest['step']}/{manifest['key']}")
    for record_ in runs.load_all(store):
        if target in (record_.id, record_.run_id) and record_.steps:
            done = [step for step in record_.steps if step.status in ("ran", "reused")]
            if done:
                return _node(graph, f"{done[-1].name}/{done[-1].key}")
        for step in record_.steps:
            if target == step.run_id:
                return _node(graph, f"{step.name}/{step.key}")
    names = sorted(
        {
            record["registered_name"] or record["name"]
            for manifest in newest
            for record in manifest["records"]
            if record["type"] == "model"
        }
    )
    raise UserError(
        f"{target} is no model, step, key or run under {store.root}; models there: {', '.join(names) or 'none'}"
    )


def _node(graph: Lineage, node_id: str) -> Node:
    return next(node for node in graph.nodes if node.id == node_id)


def _tree(node: Node, graph: Lineage) -> Tree:
    """What `node` was made of, as a tree; a node that was shown is named again without its own parents."""
    by_id = {item.id: item for item in graph.nodes}
    shown: set[str] = set()

    def add(tree: Tree, current: Node) -> None:
        again = current.id in shown
        shown.add(current.id)
        branch = tree.add(_label(current) + (" [dim](above)[/dim]" if again else ""))
        if not again:
            for source, target in graph.edges:
                if target == current.id:
                    add(branch, by_id[source])

    root = Tree("lineage", hide_root=True)
    add(root, node)
    return root


def _label(node: Node) -> str:
    facts = node.facts
    if node.kind == "raw":
        return (
            f"[b]{node.name}[/b] raw file, {facts['num_bytes']:,} bytes, sha256 {facts['sha256'][:12]}, {facts['path']}"
        )
    if node.kind == "model":
        folder = Path(str(facts["path"]))
        return f"[b]{node.name}[/b] model{' @' + facts['alias'] if facts['alias'] else ''}, {facts['task']}, {folder}"
    return f"[b]{node.name}[/b] {node.kind} {str(facts.get('key', ''))[:12]}"
