"""The graph from raw files to verdict, built from manifests alone, as JSON; `page` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

NodeKind = Literal["raw", "step", "model", "prompt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A raw file, a step's artifact, a model or a prompt."""

    id: str
    kind: NodeKind
    name: str
    facts: Mapping[str, Any]
    """What is known of it: digest, key, path, config, metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Nodes and (from, to) edges; every edge points from what was used to what was made of it.

    What uses a step that made models or prompts hangs on these: raw file, step, model, step, verdict.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, manifests: Sequence[Mapping[str, Any]], root: Path | str) -> Lineage:
        """The graph of finished steps.

        Args:
            manifests: of all steps, inputs included.
            root: where their artifacts lie: a folder, or the URI of a root on an object store.
        """
        nodes: dict[str, Node] = {}
        outlets: dict[str, list[str]] = {}
        for manifest in manifests:
            step_id = f"{manifest['step']}/{manifest['key']}"
            folder = f"{root}/artifacts/{manifest['step']}/{manifest['key']}"
            nodes[step_id] = Node(id=step_id, kind="step", name=manifest["step"], facts=_step_facts(manifest, folder))
            made = {node.id: node for node in _made(manifest, folder)}
            nodes |= made
            outlets[step_id] = list(made)
        nodes |= _raw_nodes(manifests)
        edges: dict[tuple[str, str], None] = {}
        for manifest in manifests:
            step_id = f"{manifest['step']}/{manifest['key']}"
            for files in manifest["raw"].values():
                for file in files:
                    edges[f"raw/{file['sha256']}", step_id] = None
            for entry in manifest["inputs"].values():
                source = f"{entry['step']}/{entry['key']}"
                for outlet in outlets.get(source) or [source]:
                    edges[outlet, step_id] = None
            for outlet in outlets[step_id]:
                edges[step_id, outlet] = None
        known = tuple(edge for edge in edges if edge[0] in nodes and edge[1] in nodes)
        return cls(nodes=tuple(nodes.values()), edges=known)

    def around(self, *ids: str) -> Lineage:
        """Only the nodes `ids`, what they were made of, and what was made of them."""
        keep = reach(ids, self.edges) | reach(ids, [(b, a) for a, b in self.edges])
        return Lineage(
            nodes=tuple(node for node in self.nodes if node.id in keep),
            edges=tuple(edge for edge in self.edges if edge[0] in keep and edge[1] in keep),
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"nodes": [...], "edges": [[from, to], ...]}`, for JSON."""
        return {"nodes": [asdict(node) for node in self.nodes], "edges": [list(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Lineage:
        """What `to_dict` made."""
        nodes = tuple(Node(**node) for node in content["nodes"])
        return cls(nodes=nodes, edges=tuple((source, target) for source, target in content["edges"]))

    def with_facts(self, more: Mapping[str, Mapping[str, Any]]) -> Lineage:
        """The same with `more` facts, by node id."""
        nodes = [replace(node, facts={**node.facts, **more.get(node.id, {})}) for node in self.nodes]
        return replace(self, nodes=tuple(nodes))


def reach(starts: Iterable[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    """`starts` and all that `edges` lead to from them."""
    after: dict[str, list[str]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
    found = set(starts)
    waiting = list(found)
    while waiting:
        new = [node for node in after.get(waiting.pop(), ()) if node not in found]
        found.update(new)
        waiting += new
    return found


def _step_facts(manifest: Mapping[str, Any], folder: str) -> dict[str, Any]:
    return {
        "key": manifest["key"],
        "artifact_uri": folder if "://" in folder else Path(folder).as_uri(),
        "made_by_run": manifest["made_by_run"],
        "git_commit": manifest["tags"].get("git_commit"),
        "metrics": manifest["metrics"],
        "measured": manifest["measured"],
        "config": manifest["config"],
    }


def _raw_nodes(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Node]:
    """One node a content, by id. `sources` has the rows of each reading by step and source: None in old manifests."""
    found: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        for source, files in manifest["raw"].items():
            for file in files:
                facts = found.setdefault(f"raw/{file['sha256']}", {**file, "num_rows": None, "sources": {}})
                facts["sources"].setdefault(f"{manifest['step']}.{source}", None)
                if file.get("num_rows") is not None:
                    facts["num_rows"] = facts["sources"][f"{manifest['step']}.{source}"] = file["num_rows"]
    return {id_: Node(id=id_, kind="raw", name=Path(facts["path"]).name, facts=facts) for id_, facts in found.items()}


def _made(manifest: Mapping[str, Any], folder: str) -> Iterator[Node]:
    for record in manifest["records"]:
        if record["type"] == "model":
            facts = {
                "path": f"{folder}/{record['path']}",
                "task": record["task"],
                "metrics": record["metrics"],
                "registered_name": record["registered_name"],
                "alias": record["alias"],
            }
            yield Node(
                id=f"model/{manifest['key']}/{record['path']}",
                kind="model",
                name=record["registered_name"] or record["name"],
                facts=facts,
            )
        elif record["type"] == "prompt":
            yield Node(
                id=f"prompt/{manifest['key']}/{record['name']}",
                kind="prompt",
                name=record["name"],
                facts={"template": record["template"]},
            )
