"""The trie of the labels' token ids: which positions a model must run to score all labels at once.

With one-token labels nothing below the root runs. With multi-token labels only inner nodes run, each once, however
many labels share it. Positions: node 0 is the root (the last token of the context); node i >= 1 is an inner node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTrie:
    """M inner nodes below the root, parents before children; K labels, E scored tokens in all."""

    tokens: tuple[int, ...]
    """Token of each inner node [M]."""
    parents: tuple[int, ...]
    """Parent of each inner node [M]: 0 = root, i = inner node i - 1 of this tuple."""
    depths: tuple[int, ...]
    """Tokens below the root [M], from 1."""
    edge_sources: tuple[int, ...]
    """Node whose next-token distribution scores the token [E]."""
    edge_tokens: tuple[int, ...]
    """The scored token [E]."""
    edge_labels: tuple[int, ...]
    """The label it belongs to [E]."""
    num_labels: int

    @classmethod
    def build(cls, label_ids: Sequence[Sequence[int]]) -> LabelTrie:
        """The trie of K non-empty token sequences."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        edges: list[tuple[int, int, int]] = []
        for label, ids in enumerate(label_ids):
            for position, token in enumerate(ids):
                path = tuple(ids[:position])
                if path not in nodes:
                    nodes[path] = len(nodes)
                    tokens.append(path[-1])
                    parents.append(nodes[path[:-1]])
                    depths.append(len(path))
                edges.append((nodes[path], token, label))
        return cls(
            tokens=tuple(tokens),
            parents=tuple(parents),
            depths=tuple(depths),
            edge_sources=tuple(edge[0] for edge in edges),
            edge_tokens=tuple(edge[1] for edge in edges),
            edge_labels=tuple(edge[2] for edge in edges),
            num_labels=len(label_ids),
        )

    def visible(self) -> npt.NDArray[np.bool_]:
        """[M + 1, M + 1]: whether inner node q sees inner node k (itself and its ancestors); the last row and column,
        for what is no inner node, are False."""
        size = len(self.tokens)
        seen = np.zeros((size + 1, size + 1), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent > 0:
                seen[node] = seen[parent - 1]
            seen[node, node] = True
        return seen
