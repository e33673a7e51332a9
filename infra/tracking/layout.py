"""Places the nodes of a DAG on a page, in layers from left to right.

The usual four passes (Sugiyama, Tagawa and Toda 1981): layers by longest path; edges that span layers get a waypoint
in each; the order inside a layer by barycentres, the sweep with the fewest crossings wins; then heights that draw
neighbours level. 300 nodes take a twentieth of a second. Units are columns and rows, which the page scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 12
WAYPOINT_HEIGHT = 0.45
Edge = tuple[str, str]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where everything stands: (column, row) of each middle."""

    places: Mapping[str, Point]
    routes: Mapping[Edge, tuple[Point, ...]]
    """Each edge's points: its source, one in every layer between, its target."""


def lay_out(heights: Mapping[str, float], edges: Iterable[Edge]) -> Layout:
    """Places nodes.

    Args:
        heights: how many rows each node takes, in an order that breaks ties.
        edges: (from, to), without a cycle.
    """
    nodes, edges = list(heights), list(dict.fromkeys(edges))
    layer_of = _layers(nodes, edges)
    order: list[list[str]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    for node in nodes:
        order[layer_of[node]].append(node)
    chains: dict[Edge, list[str]] = {}
    for source, target in edges:
        between = range(layer_of[source] + 1, layer_of[target])
        waypoints = [f"{source}\0{target}\0{layer}" for layer in between]
        for layer, waypoint in zip(between, waypoints, strict=True):
            order[layer].append(waypoint)
        chains[source, target] = [source, *waypoints, target]
    before, after = _neighbours(chains.values())
    order = _fewest_crossings(order, before, after)
    rows = _rows(order, before, after, heights)
    column = {name: float(index) for index, layer in enumerate(order) for name in layer}
    return Layout(
        places={node: (column[node], rows[node]) for node in nodes},
        routes={edge: tuple((column[name], rows[name]) for name in chain) for edge, chain in chains.items()},
    )


def _layers(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Longest path from the left; what has nothing before it stands close to the first that uses it."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        moved = [(target, depth[source] + 1) for source, target in edges if depth[target] <= depth[source]]
        if not moved:
            break
        for target, least in moved:
            depth[target] = max(depth[target], least)
    targets = {target for _, target in edges}
    for node in nodes:
        used_at = [depth[target] for source, target in edges if source == node]
        if node not in targets and used_at:
            depth[node] = min(used_at) - 1
    return depth


def _neighbours(chains: Iterable[list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for chain in chains:
        for left, right in itertools.pairwise(chain):
            after.setdefault(left, []).append(right)
            before.setdefault(right, []).append(left)
    return before, after


def _fewest_crossings(
    order: list[list[str]], before: Mapping[str, list[str]], after: Mapping[str, list[str]]
) -> list[list[str]]:
    best, fewest = order, _crossings(order, after)
    for sweep in range(SWEEPS):
        rightwards = sweep % 2 == 0
        neighbours = before if rightwards else after
        order = [list(layer) for layer in order]
        indices = range(1, len(order)) if rightwards else range(len(order) - 2, -1, -1)
        for index in indices:
            fixed = {name: place for place, name in enumerate(order[index - 1 if rightwards else index + 1])}
            centres = {}
            for place, name in enumerate(order[index]):
                others = [fixed[other] for other in neighbours.get(name, ())]
                centres[name] = sum(others) / len(others) if others else place
            order[index].sort(key=centres.__getitem__)
        found = _crossings(order, after)
        if found < fewest:
            best, fewest = order, found
    return best


def _crossings(order: Sequence[Sequence[str]], after: Mapping[str, Sequence[str]]) -> int:
    """Pairs of edges between neighbouring layers that cross."""
    total = 0
    for left, right in itertools.pairwise(order):
        place = {name: index for index, name in enumerate(right)}
        ends: list[int] = []
        for name in left:
            mine = sorted(place[other] for other in after.get(name, ()))
            total += sum(1 for end in mine for earlier in ends if earlier > end)
            ends += mine
    return total


def _rows(
    order: Sequence[Sequence[str]],
    before: Mapping[str, list[str]],
    after: Mapping[str, list[str]],
    heights: Mapping[str, float],
) -> dict[str, float]:
    """Middles that keep the order and do not overlap, each as near to its neighbours' mean as that allows."""
    offsets = []
    for layer in order:
        ends = list(itertools.accumulate(heights.get(name, WAYPOINT_HEIGHT) for name in layer))
        offsets.append([end - heights.get(name, WAYPOINT_HEIGHT) / 2 for end, name in zip(ends, layer, strict=True)])
    rows = {
        name: at for layer, places in zip(order, offsets, strict=True) for name, at in zip(layer, places, strict=True)
    }
    for sweep in range(2 * SWEEPS):
        layers = list(zip(order, offsets, strict=True))
        for layer, places in layers if sweep % 2 == 0 else layers[::-1]:
            wishes = []
            for name in layer:
                others = [*before.get(name, ()), *after.get(name, ())]
                wishes.append(sum(rows[other] for other in others) / len(others) if others else rows[name])
            rows.update(zip(layer, _spread(wishes, places), strict=True))
    top = min((rows[name] - heights.get(name, WAYPOINT_HEIGHT) / 2 for name in rows), default=0.0)
    return {name: row - top for name, row in rows.items()}


def _spread(wishes: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The middles nearest to `wishes` (least squares) that stand at least as far apart as `offsets`.

    By pooling adjacent violators.
    """
    blocks: list[tuple[float, int]] = []  # (mean of wish less offset, how many)
    for wish, offset in zip(wishes, offsets, strict=True):
        blocks.append((wish - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean_b, size_b), (mean_a, size_a) = blocks.pop(), blocks.pop()
            blocks.append(((mean_a * size_a + mean_b * size_b) / (size_a + size_b), size_a + size_b))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
