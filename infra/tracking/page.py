"""The lineage as one self-contained page: a graph from left to right, and what each node is beside it.

Everything that a user could have written goes into the page as JSON and is shown as text, never as markup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from infra.tracking.layout import lay_out
from infra.tracking.lineage import Lineage, Node

BOX_WIDTH, BOX_HEIGHT, OUTLET_INDENT, GAP = 188, 50, 12, 8
COLUMN, ROW = 226, 72
"""Pixels. What a step made hangs below it, indented."""
HEADLINES = (
    ("test_accuracy", "{:.1%} on test"),
    ("validation_loss", "loss {:.3f}"),
    ("num_tokens", "{:,} tokens"),
    ("num_documents_kept", "{:,} documents"),
    ("vocab_size", "{:,} pieces"),
)


def render(lineage: Lineage, *, about: str = "", target: str | None = None) -> str:
    """The page.

    Args:
        lineage: what to show.
        about: a line beside the title.
        target: id of the node that is chosen when the page opens.
    """
    places, edges, size = _place(lineage)
    counts = Counter(node.kind for node in lineage.nodes)
    content = {
        "about": about,
        "target": target,
        "width": BOX_WIDTH,
        "height": BOX_HEIGHT,
        "size": size,
        "counts": {"raw files": counts["raw"], "steps": counts["step"], "models": counts["model"]}
        | {"prompts": counts["prompt"]},
        "nodes": [
            {"id": node.id, "kind": node.kind, "name": node.name, **_shown(node), **places[node.id]}
            for node in sorted(lineage.nodes, key=lambda node: (places[node.id]["x"], places[node.id]["y"]))
        ],
        "edges": edges,
    }
    text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    page = files("infra.tracking").joinpath("lineage_page.html").read_text("utf-8")
    return page.replace("$DATA", text)


def _place(lineage: Lineage) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]], tuple[float, float]]:
    """Pixels: each node's corner and width, each edge's points, and the size of the whole.

    A step and the models and prompts that it made are one block for the layout.
    """
    kinds = {node.id: node.kind for node in lineage.nodes}
    block_of = {node.id: node.id for node in lineage.nodes}
    blocks: dict[str, list[str]] = {node.id: [node.id] for node in lineage.nodes}
    for source, target in lineage.edges:
        if kinds[source] == "step" and kinds[target] in ("model", "prompt") and target in blocks:
            block_of[target] = source
            blocks[source] += blocks.pop(target)
    step_pixels = BOX_HEIGHT + GAP
    heights = {block: (len(members) * step_pixels - GAP) / ROW + 0.3 for block, members in blocks.items()}
    between = [(s, t) for s, t in lineage.edges if block_of[s] != block_of[t]]
    layout = lay_out(heights, [(block_of[s], block_of[t]) for s, t in between])
    places: dict[str, dict[str, float]] = {}
    for block, members in blocks.items():
        column, row = layout.places[block]
        top = row * ROW - (len(members) * step_pixels - GAP) / 2
        for index, member in enumerate(members):
            indent = OUTLET_INDENT if index else 0
            corner = {"x": column * COLUMN + indent, "y": round(top + index * step_pixels, 1)}
            places[member] = {**corner, "width": BOX_WIDTH - indent}
    edges = []
    for source, target in lineage.edges:
        if block_of[source] == block_of[target]:
            x, end = places[source]["x"] + OUTLET_INDENT / 2, places[target]["y"] + BOX_HEIGHT / 2
            points = [[x, places[source]["y"] + BOX_HEIGHT], [x, end], [places[target]["x"], end]]
            edges.append({"from": source, "to": target, "inside": True, "points": points})
            continue
        route = layout.routes[block_of[source], block_of[target]]
        first = [places[source]["x"] + places[source]["width"], places[source]["y"] + BOX_HEIGHT / 2]
        last = [places[target]["x"], places[target]["y"] + BOX_HEIGHT / 2]
        inner = [[column * COLUMN, round(row * ROW, 1)] for column, row in route[1:-1]]
        edges.append({"from": source, "to": target, "inside": False, "points": [first, *inner, last]})
    width = max((place["x"] + place["width"] for place in places.values()), default=0)
    height = max((place["y"] + BOX_HEIGHT for place in places.values()), default=0)
    return places, edges, (width, height)


def _shown(node: Node) -> dict[str, Any]:
    """What the page tells of a node: a line in its box, and the tables beside the graph."""
    facts, link = node.facts, node.facts.get("mlflow_url")
    if node.kind == "raw":
        what = {name: facts.get(name) for name in ("path", "num_rows", "num_bytes", "sha256")}
        rows = f"{facts['num_rows']:,} rows" if facts.get("num_rows") is not None else str(facts.get("sha256"))[:8]
        what["read by"] = ", ".join(facts.get("sources", ()))
        return {"line": f"{rows} · {_size(facts.get('num_bytes'))}", "what": what}
    if node.kind == "model":
        what = {name: facts.get(name) for name in ("registered_name", "alias", "task", "path")}
        alias = f"@{facts['alias']} · " if facts.get("alias") else ""
        return {"line": alias + str(facts.get("task")), "what": what, "metrics": facts.get("metrics"), "link": link}
    if node.kind == "prompt":
        return {"line": "registered prompt", "what": {"name": node.name}, "text": facts.get("template"), "link": link}
    metrics: Mapping[str, Any] = facts.get("metrics") or {}
    measured: Mapping[str, Any] = facts.get("measured") or {}
    flops = {name: value for name, value in metrics.items() if name.endswith("_flops")}
    headline = next((form.format(metrics[name]) for name, form in HEADLINES if name in metrics), "")
    seconds = measured.get("seconds")
    return {
        "line": " · ".join(filter(None, (headline, _duration(seconds)))) or str(facts.get("key"))[:12],
        "what": {name: facts.get(name) for name in ("key", "made_by_run", "git_commit", "artifact_uri")},
        "cost": {**flops, **measured},
        "metrics": {name: value for name, value in metrics.items() if name not in flops},
        "config": facts.get("config"),
        "link": link,
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _size(num_bytes: int | None) -> str:
    value = float(num_bytes or 0)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
