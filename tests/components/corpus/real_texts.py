"""Real texts: dictionary glosses and poems, and careless copies of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DATA = Path(__file__).parents[3] / "conf" / "data"


@cache
def glosses() -> tuple[str, ...]:
    """English, of some ten words each."""
    return _texts(DATA / "wordnet" / "glosses.jsonl.gz")


@cache
def poems() -> tuple[str, ...]:
    """Chinese, of some fifty characters each."""
    return _texts(DATA / "chinese_poetry" / "poems.jsonl.gz")


def _texts(path: Path) -> tuple[str, ...]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"] for line in lines)


def documents(num_english: int, num_chinese: int) -> list[str]:
    """English documents of one to eight glosses, and poems; all different."""
    source, rng = iter(glosses()), random.Random(1)
    made: dict[str, None] = {}
    while len(made) < num_english:
        made["; ".join(next(source) for _ in range(rng.randint(1, 8)))] = None
    return [*made, *list(dict.fromkeys(poems()))[:num_chinese]]


def edited(text: str, edits: int, rng: random.Random) -> str:
    """`text` after so many deletions, substitutions or insertions of a word (a character of a poem), or one cut."""
    spaced = " " in text
    units = text.split(" ") if spaced else list(text)
    if rng.random() < 0.2:
        return (" " if spaced else "").join(units[: max(1, len(units) - edits)])
    strange: Sequence[str] = ("perhaps", "very", "other") if spaced else "某甚異"
    for _ in range(edits if text else 0):
        place = rng.randrange(len(units))
        how = rng.randrange(3)
        if how == 0 and len(units) > 1:
            del units[place]
        elif how == 1:
            units[place] = rng.choice(strange)
        else:
            units.insert(place, rng.choice(strange))
    return (" " if spaced else "").join(units)
