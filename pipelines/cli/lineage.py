"""`lineage`: what a model, prompt, run, step or raw file was made of, and what was made of it, told from ROOT. MLflow
is asked for versions, aliases and the links of the page alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.text import Text
from rich.tree import Tree

from infra.cluster.environment import apply, run_environment
from infra.errors import UserError
from infra.storage.files import write_atomic
from infra.tracking.delivered import Delivered
from infra.tracking.lineage import Lineage, Node
from infra.tracking.locations import destination
from infra.tracking.page import render
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.cli.targets import Targets
from pipelines.compose import load_config

logger = logging.getLogger(__name__)


def lineage_command(target: str, pipeline: str, overrides: list[str], *, as_json: bool, html: Path | None) -> NoReturn:
    """Prints the lineage of `target`, or writes it as a page."""

    def work() -> int:
        targets = Targets.of(load_config(pipeline, overrides))
        store, found = targets.store, targets.find(target)
        graph = _with_aliases(Lineage.of(targets.newest[::-1], store.uri), targets)
        node = next((node for node in graph.nodes if node.id == found.node), None)
        if node is None:
            raise UserError(f"{target} lies under another root: add storage.root={found.store.uri}")
        part = graph.around(node.id, *found.others)
        if html:
            if not html.parent.is_dir() or html.is_dir():
                raise UserError(f"--html: {html} is a folder, or lies in none; name a file")
            _write(html, render(_linked(part, targets), about=target, target=node.id).encode("utf-8"))
            say(f"{len(part.nodes)} nodes in {html}")
        if as_json:
            nodes = [{"id": n.id, "kind": n.kind, "name": n.name, **n.facts} for n in part.nodes]
            edges = [list(edge) for edge in part.edges]
            emit_json({"target": node.id, "errors": [], "edges": edges, "nodes": nodes})
        elif not html:
            console = stdout_console()
            for end in [one for one in part.nodes if one.id in (*found.others, node.id)]:
                console.print(_tree("made from", end, part.nodes, [(b, a) for a, b in part.edges]))
            if any(source == node.id for source, _ in part.edges):
                console.print(_tree("used by", node, part.nodes, part.edges))
        return 0

    guarded(work, as_json=as_json, frame={"target": target, "nodes": [], "edges": []})


def _write(path: Path, page: bytes) -> None:
    """Writes the page whole or not at all, except to what is no file, as /dev/stdout."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(page)
        else:
            write_atomic(path.resolve(), page)
    except (OSError, UserError) as error:
        raise UserError(f"--html: {path} cannot be written") from error


def _with_aliases(graph: Lineage, targets: Targets) -> Lineage:
    """Only the model on which an alias stood last, as far as this root knows, has it."""
    where = destination(targets.config.tracking, targets.store.root)
    stands = Delivered.load(targets.store.root, where, targets.store.objects).aliases
    gone = {
        node.id: {"alias": None}
        for node in graph.nodes
        if node.kind == "model"
        and (key := stands.get(f"{node.facts['registered_name']}@{node.facts['alias']}"))
        and not node.id.startswith(f"model/{key}/")
    }
    return graph.with_facts(gone)


def _linked(part: Lineage, targets: Targets) -> Lineage:
    """With links to MLflow, if it is there."""
    target = destination(targets.config.tracking, targets.store.root)
    if target.database and not target.database.exists():
        return part
    apply(run_environment())
    try:
        return target.open().linked(part)
    except Exception as error:  # telemetry boundary: the page is worth having without links
        logger.warning("no links to MLflow in the page: %s does not answer (%s)", target.uri, error)
        return part


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
    return f"{node.kind} {str(facts.get('key', ''))[:12]}".rstrip()
