"""`lineage`: what a model, run, step, raw file or prompt was made of and what was made of it, from ROOT alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.text import Text
from rich.tree import Tree

from infra.errors import UserError
from infra.journal import runs
from infra.storage.files import write_atomic
from infra.storage.store import Store
from infra.tracking.lineage import Lineage, Node
from infra.tracking.locations import destination
from infra.tracking.page import render
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.compose import load_config
from pipelines.config import PipelineConfig

logger = logging.getLogger(__name__)
Manifest = Mapping[str, Any]


def lineage_command(target: str, pipeline: str, overrides: list[str], *, as_json: bool, html: Path | None) -> NoReturn:
    """Prints the lineage of `target`, or writes it as a page."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        store = Store.open(config.storage.root)
        folders = sorted((store.root / "artifacts").iterdir())
        manifests = [manifest for folder in folders for manifest in store.manifests(folder.name)]
        graph = Lineage.of(manifests, store.root)
        node = _find(target, graph, manifests, store)
        part = graph.around(node.id)
        if html:
            if not html.parent.is_dir():
                raise UserError(f"--html: {html.parent} is no folder")
            write_atomic(html, render(_linked(part, config, store), about=target, target=node.id).encode("utf-8"))
            say(f"{len(part.nodes)} nodes in {html}")
        if as_json:
            nodes = [{"id": n.id, "kind": n.kind, "name": n.name, **n.facts} for n in part.nodes]
            edges = [list(edge) for edge in part.edges]
            emit_json({"target": node.id, "errors": [], "edges": edges, "nodes": nodes})
        elif not html:
            console = stdout_console()
            console.print(_tree("made from", node, part.nodes, [(b, a) for a, b in part.edges]))
            if any(source == node.id for source, _ in part.edges):
                console.print(_tree("used by", node, part.nodes, part.edges))
        return 0

    guarded(work, as_json=as_json, frame={"target": target, "nodes": [], "edges": []})


def _linked(part: Lineage, config: PipelineConfig, store: Store) -> Lineage:
    """With links to MLflow, if it is there."""
    target = destination(config.tracking, store.root)
    if target.uri.startswith("sqlite:") and not Path(target.uri.removeprefix("sqlite:///")).exists():
        return part
    try:
        return target.open().linked(part)
    except Exception as error:  # telemetry boundary: the page is worth having without links
        logger.warning("no links to MLflow in the page: %s does not answer (%s)", target.uri, error)
        return part


def _find(target: str, graph: Lineage, manifests: Sequence[Manifest], store: Store) -> Node:
    """The node that `target` names: a model or prompt (its newest), a step, a key, a raw file, a run.

    Raises:
        UserError: there is none.
    """
    by_id = {node.id: node for node in graph.nodes}
    newest = sorted(manifests, key=lambda manifest: float(manifest["finished_at"]), reverse=True)
    found = next(_candidates(target, newest, graph, store), None)
    if found is None:
        models = sorted({node.name for node in graph.nodes if node.kind == "model"})
        raise UserError(
            f"{target} is no model, prompt, step, key, raw file or run under {store.root}; "
            f"models there: {', '.join(models) or 'none'}"
        )
    return by_id[found]


def _candidates(target: str, newest: Sequence[Manifest], graph: Lineage, store: Store) -> Iterator[str]:
    for manifest in newest:
        for record in manifest["records"]:
            if record["type"] == "model" and target in (record["registered_name"], record["name"]):
                yield f"model/{manifest['key']}/{record['path']}"
            if record["type"] == "prompt" and target == record["name"]:
                yield f"prompt/{manifest['key']}/{record['name']}"
    for manifest in newest:
        if target in (manifest["step"], manifest["key"]) or (len(target) >= 8 and manifest["key"].startswith(target)):
            yield f"{manifest['step']}/{manifest['key']}"
    for node in graph.nodes:
        if node.kind == "raw" and (
            target in (node.name, node.facts["path"])
            or (len(target) >= 8 and str(node.facts["sha256"]).startswith(target))
        ):
            yield node.id
    for run in runs.load_all(store):
        done = [step for step in run.steps if step.status in ("ran", "reused")]
        if target in (run.id, run.run_id) and done:
            yield f"{done[-1].name}/{done[-1].key}"
        yield from (f"{step.name}/{step.key}" for step in done if target == step.run_id)


def _tree(title: str, node: Node, nodes: Sequence[Node], edges: Sequence[tuple[str, str]]) -> Tree:
    """`node` and what `edges` lead to, as a tree; what was shown is named again without its own branches."""
    by_id = {item.id: item for item in nodes}
    shown: set[str] = set()

    def add(tree: Tree, current: Node) -> None:
        again = current.id in shown
        shown.add(current.id)
        label = Text.assemble((current.name, "bold"), " ", _described(current), (" (above)" if again else "", "dim"))
        branch = tree.add(label)
        if not again:
            for source, target in edges:
                if source == current.id:
                    add(branch, by_id[target])

    root = Tree(Text(title, style="dim"))
    add(root, node)
    return root


def _described(node: Node) -> str:
    facts = node.facts
    if node.kind == "raw":
        rows = f"{facts['num_rows']:,} rows, " if facts.get("num_rows") is not None else ""
        return f"raw file, {rows}{facts['num_bytes']:,} bytes, sha256 {str(facts['sha256'])[:12]}, {facts['path']}"
    if node.kind == "model":
        return f"model{' @' + facts['alias'] if facts['alias'] else ''}, {facts['task']}, {facts['path']}"
    return f"{node.kind} {str(facts.get('key', ''))[:12]}"
