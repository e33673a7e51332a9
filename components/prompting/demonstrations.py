"""Which training rows become the demonstrations of a few-shot prompt.

Balanced and seeded: labels take turns in a random order, so that k demonstrations show min(k, labels) different ones
(an unbalanced draw pulls a small model to the label it saw most), and their order is random too (the last one weighs
most). Only training rows are ever passed in; a draw is a pure function of (rows, shots, seed, draw).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.prompting.template import Demonstration


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Labelled rows as columns; the three have the same length."""

    ids: list[str]
    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, in that order."""
        return Rows(
            ids=[self.ids[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            labels=[self.labels[i] for i in indices],
        )

    def sample(self, max_rows: int | None, seed: int) -> Rows:
        """At most `max_rows` rows, drawn with `seed`, in their order; None takes all."""
        if max_rows is None or len(self) <= max_rows:
            return self
        chosen = np.random.default_rng([seed, 1]).choice(len(self), max_rows, replace=False)
        return self.take(sorted(chosen.tolist()))


def choose_demonstrations(
    training: Rows, labels: Sequence[str], phrases: Sequence[str], shots: int, seed: int, draw: int
) -> tuple[Demonstration, ...]:
    """Draws `shots` demonstrations from the training rows; fewer only if there are fewer rows.

    Args:
        training: rows of the training split.
        labels: the task's labels.
        phrases: what stands for each of them.
        shots: how many demonstrations.
        seed: of the run.
        draw: number of the draw; another number, other demonstrations.
    """
    generator = np.random.default_rng([seed, 2, shots, draw])
    by_label: dict[str, list[int]] = {label: [] for label in labels}
    for index, label in enumerate(training.labels):
        by_label[label].append(index)
    queues = [generator.permutation(by_label[label]).tolist() for label in labels]
    turns = generator.permutation(len(labels)).tolist()
    chosen: list[tuple[int, int]] = []
    while len(chosen) < min(shots, len(training)):
        for turn in turns:
            if queues[turn] and len(chosen) < shots:
                chosen.append((int(queues[turn].pop()), turn))
    order = generator.permutation(len(chosen)).tolist()
    return tuple(
        Demonstration(id=training.ids[row], text=training.texts[row], phrase=phrases[label])
        for row, label in (chosen[i] for i in order)
    )


def permute_labels(
    demonstrations: Sequence[Demonstration], phrases: Sequence[str], seed: int
) -> tuple[Demonstration, ...]:
    """The same demonstrations with wrong labels: a control that shows whether a model reads them at all.

    Each phrase is replaced by another one through a random cycle over all phrases, so that none stays.
    """
    cycle = np.random.default_rng([seed, 3]).permutation(len(phrases)).tolist()
    wrong = {phrases[a]: phrases[b] for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
    return tuple(Demonstration(id=demo.id, text=demo.text, phrase=wrong[demo.phrase]) for demo in demonstrations)
