"""The graph from raw files to verdict, built from manifests alone, as JSON and as one self-contained page."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

NodeKind = Literal["raw", "step", "model", "prompt"]
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 58, 70, 18, 24
COLORS: Mapping[str, tuple[str, str]] = {
    "raw": ("#eef2f6", "#64748b"),
    "step": ("#e6f0fb", "#2563eb"),
    "model": ("#fdf0e3", "#c2570c"),
    "prompt": ("#eaf6ec", "#15803d"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A raw file, a step's artifact, a model or a prompt."""

    id: str
    kind: NodeKind
    name: str
    facts: Mapping[str, Any]
    """What the page shows: digest, key, path, metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Nodes and (from, to) edges; every edge points from what was used to what was made of it."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, manifests: Sequence[Mapping[str, Any]], root: Path) -> Lineage:
        """The graph of finished steps.

        Args:
            manifests: of all steps, inputs included.
            root: where their artifacts lie.
        """
        nodes: dict[str, Node] = {}
        edges: dict[tuple[str, str], None] = {}
        for manifest in manifests:
            step_id = f"{manifest['step']}/{manifest['key']}"
            folder = root / "artifacts" / manifest["step"] / manifest["key"]
            facts = {
                "key": manifest["key"],
                "artifact_uri": folder.as_uri(),
                "metrics": manifest["metrics"],
                "seconds": manifest["measured"].get("seconds"),
            }
            nodes[step_id] = Node(id=step_id, kind="step", name=manifest["step"], facts=facts)
            for raw in _raw_nodes(manifest):
                nodes[raw.id] = raw
                edges[raw.id, step_id] = None
            for entry in manifest["inputs"].values():
                edges[f"{entry['step']}/{entry['key']}", step_id] = None
            for made in _made(manifest, folder):
                nodes[made.id] = made
                edges[step_id, made.id] = None
        known = tuple(edge for edge in edges if edge[0] in nodes and edge[1] in nodes)
        return cls(nodes=tuple(nodes.values()), edges=known)

    def up(self, node_id: str) -> Lineage:
        """Only `node_id` and what it was made of."""
        keep, waiting = set(), [node_id]
        while waiting:
            current = waiting.pop()
            if current not in keep:
                keep.add(current)
                waiting += [source for source, target in self.edges if target == current]
        return Lineage(
            nodes=tuple(node for node in self.nodes if node.id in keep),
            edges=tuple(edge for edge in self.edges if edge[0] in keep and edge[1] in keep),
        )

    def layers(self) -> list[list[Node]]:
        """Nodes by the longest way that leads to them, in a stable order."""
        depth = {node.id: 0 for node in self.nodes}
        for _ in self.nodes:  # longest path in a DAG: at most as many rounds as nodes
            changed = False
            for source, target in self.edges:
                if depth[target] < depth[source] + 1:
                    depth[target], changed = depth[source] + 1, True
            if not changed:
                break
        layers: list[list[Node]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
        for node in self.nodes:
            layers[depth[node.id]].append(node)
        return layers

    def to_json(self) -> str:
        """`{"nodes": [...], "edges": [[from, to], ...]}`."""
        content = {"nodes": [asdict(node) for node in self.nodes], "edges": self.edges}
        return json.dumps(content, ensure_ascii=False, indent=1)


def _raw_nodes(manifest: Mapping[str, Any]) -> Iterator[Node]:
    for source, files in manifest["raw"].items():
        for file in files:
            yield Node(
                id=f"raw/{file['sha256']}", kind="raw", name=Path(file["path"]).name, facts={"source": source, **file}
            )


def _made(manifest: Mapping[str, Any], folder: Path) -> Iterator[Node]:
    for record in manifest["records"]:
        if record["type"] == "model":
            facts = {
                "path": str(folder / record["path"]),
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


def render(lineage: Lineage) -> str:
    """One self-contained page: the graph from left to right, each box with its facts on hover and below."""
    layers = lineage.layers()
    height = max(len(layer) for layer in layers) * (BOX_HEIGHT + GAP_Y) + 2 * MARGIN
    width = len(layers) * (BOX_WIDTH + GAP_X) + 2 * MARGIN - GAP_X
    place: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(layers):
        top = (height - len(layer) * (BOX_HEIGHT + GAP_Y) + GAP_Y) / 2
        for row, node in enumerate(layer):
            place[node.id] = (MARGIN + column * (BOX_WIDTH + GAP_X), top + row * (BOX_HEIGHT + GAP_Y))
    arrows = "".join(_arrow(place[source], place[target]) for source, target in lineage.edges)
    boxes = "".join(_box(node, *place[node.id]) for node in lineage.nodes)
    details = "".join(
        f'<details id="{html.escape(node.id)}"><summary><b>{html.escape(node.name)}</b> {node.kind}</summary>'
        f"<pre>{html.escape(json.dumps(node.facts, ensure_ascii=False, indent=1))}</pre></details>"
        for layer in layers
        for node in layer
    )
    return _PAGE.format(width=width, height=height, arrows=arrows, boxes=boxes, details=details)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2
    x2, y2 = end[0] - 6, end[1] + BOX_HEIGHT / 2
    bend = max(30.0, (x2 - x1) / 2)
    return f'<path d="M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" class="edge" marker-end="url(#tip)"/>'


def _box(node: Node, x: float, y: float) -> str:
    fill, line = COLORS[node.kind]
    name = node.name if len(node.name) <= 26 else node.name[:25] + "…"
    facts = json.dumps(node.facts, ensure_ascii=False, indent=1)
    below = str(node.facts.get("key") or node.facts.get("sha256") or node.facts.get("task") or node.kind)[:12]
    return (
        f'<a href="#{html.escape(node.id)}"><g><title>{html.escape(facts)}</title>'
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" stroke="{line}"/>'
        f'<text x="{x + 12}" y="{y + 24}" class="name">{html.escape(name)}</text>'
        f'<text x="{x + 12}" y="{y + 43}" class="below" fill="{line}">{node.kind} {html.escape(below)}</text></g></a>'
    )


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Lineage</title><style>
body{{font:14px system-ui,sans-serif;color:#1e293b;margin:24px}} h1{{font-size:20px}}
.graph{{overflow:auto;border:1px solid #e2e8f0;border-radius:10px}} .name{{font-weight:600;fill:#0f172a}}
.below{{font-size:11px}} .edge{{fill:none;stroke:#94a3b8;stroke-width:1.4}} a{{text-decoration:none}}
details{{border-bottom:1px solid #e2e8f0;padding:6px 2px}} pre{{background:#f8fafc;padding:10px;overflow:auto}}
</style><h1>Lineage: from raw files to verdict</h1><div class="graph"><svg width="{width}" height="{height}"
xmlns="http://www.w3.org/2000/svg"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"
markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#94a3b8"/></marker></defs>{arrows}{boxes}</svg></div>
<h2>Every node</h2>{details}<script>
onhashchange=()=>{{const d=document.getElementById(decodeURIComponent(location.hash.slice(1)));if(d)d.open=true}};
</script></html>
"""
