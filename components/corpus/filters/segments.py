"""Words, lines and paragraphs as positions in one array of characters: no Python string is made for any of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.corpus.scripts import CharacterClass

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segments:
    """K segments of a batch, in the order of the text."""

    starts: Ints
    """First character, (K,), counted over the whole batch."""
    ends: Ints
    """One past the last character, (K,)."""
    texts: Ints
    """Which text of the batch each is in, (K,)."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Ints:
        """Characters, (K,)."""
        return self.ends - self.starts

    def where(self, mask: Bools) -> Segments:
        """Those for which `mask`, (K,), is true."""
        return Segments(self.starts[mask], self.ends[mask], self.texts[mask])


def runs(inside: Bools) -> tuple[Ints, Ints]:
    """Starts and ends of the maximal runs of true in `inside`, (N,)."""
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if len(inside) and inside[0]:
        edges = np.concatenate(([0], edges))
    if len(inside) and inside[-1]:
        edges = np.concatenate((edges, [len(inside)]))
    return edges[::2], edges[1::2]


def trimmed(starts: Ints, ends: Ints, core: Bools) -> tuple[Ints, Ints, Bools]:
    """Each run cut to its first and last character for which `core`, (N,), is true, and which runs have one."""
    places = np.flatnonzero(core)
    first, last = starts.copy(), ends - 1
    to_cut = np.flatnonzero(~core[starts])
    after = np.searchsorted(places, starts[to_cut])
    first[to_cut] = np.append(places, len(core))[after]
    kept = first < ends
    to_cut = np.flatnonzero(~core[last] & kept)
    last[to_cut] = places[np.searchsorted(places, last[to_cut]) - 1]
    return first[kept], last[kept] + 1, kept


def word_runs(classes: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Starts and ends of the words among characters of `classes`, (N,).

    A word is what stands between spaces, without the punctuation around it; each letter of a script without spaces is
    a word of its own, with the marks on it. Punctuation alone is no word.
    """
    unspaced = classes >= CharacterClass.HAN
    if unspaced.any():
        # Every letter without spaces begins a word, and so does what follows one, unless it is a mark on it.
        starts_word = unspaced.copy()
        starts_word[1:] |= _after_unspaced(classes, unspaced)
        visible = classes != CharacterClass.SPACE
        starts_word[1:] |= visible[1:] & ~visible[:-1]
        starts_word[:1] = visible[:1]
        starts = np.flatnonzero(starts_word)
        stops = np.flatnonzero(starts_word | ~visible)
        after = np.searchsorted(stops, starts, side="right")
        ends = np.append(stops, len(classes))[after]
    else:
        starts, ends = runs(classes != CharacterClass.SPACE)
    core = (
        (classes != CharacterClass.SPACE) & (classes != CharacterClass.PUNCTUATION) & (classes != CharacterClass.MARK)
    )
    # Marks are trimmed like punctuation only in front: at the end they belong to the letter.
    first, _, kept = trimmed(starts, ends, core)
    core |= classes == CharacterClass.MARK
    _, last, _ = trimmed(first, ends[kept], core)
    return first, last


def _after_unspaced(classes: npt.NDArray[np.uint8], unspaced: Bools) -> Bools:
    """Which characters 1 ... N - 1 end a unit of a script without spaces without being part of it, (N - 1,)."""
    begins: Bools = classes[1:] != CharacterClass.SPACE
    marks = classes == CharacterClass.MARK
    if marks.any():
        begins &= ~marks[1:]
        # For each character, the last one up to it that is not a mark.
        bases = np.where(marks, 0, np.arange(len(classes)))
        np.maximum.accumulate(bases, out=bases)
        unspaced = unspaced[bases]
    begins &= unspaced[:-1]
    return begins


def line_runs(is_newline: Bools, is_visible: Bools) -> tuple[Ints, Ints, Ints]:
    """Starts and ends of the lines with something to see, without the spaces around, and the number of each."""
    starts, ends = runs(~is_newline)
    starts, ends, _ = trimmed(starts, ends, is_visible)
    newlines = np.flatnonzero(is_newline)
    return starts, ends, np.searchsorted(newlines, starts)
