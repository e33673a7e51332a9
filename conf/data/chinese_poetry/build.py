"""Makes the two files of this folder from the npm package chinese-poetry, to the byte.

    npm pack chinese-poetry@2.0.1 && tar xzf chinese-poetry-2.0.1.tgz
    python conf/data/chinese_poetry/build.py package/dist conf/data/chinese_poetry

`tang_poets.jsonl.gz` is the labelled task: poems of the ten Tang poets of whom most is left, `author` is the label.
`poems.jsonl.gz` is what else there is room for in 2 MB: other poems of the Tang and of the Song, chosen by hash.
The gzip header carries no time and no name, so that the same input gives the same bytes (with zlib 1.2.13; another
may compress the same content to other bytes). What is left out, and why, is counted on standard output.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

DYNASTIES = {"tang": "唐", "song": "宋"}
NO_POET = {"不詳", "無名氏", "易靜"}  # unknown, anonymous, and a book of 720 rhymed rules of war under one name
NUM_POETS = 10
MAX_POEMS_PER_POET = 1200
MIN_CHARACTERS, MAX_CHARACTERS = 20, 120  # from 4 lines of 5 to 20 of 5: whole in 128 tokens
NUM_OTHER_POEMS = {"tang": 5700, "song": 4900}
OPENING_CHARACTERS = 10

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_TEXT = re.compile(f"[{_HAN}，。？！；：、「」『』《》]+")
_TITLE = re.compile(f"[{_HAN}，。、《》· ]+")
_NOT_HAN = re.compile(f"[^{_HAN}]")
Poem = dict[str, str]


def read_poems(dist_folder: Path, dynasty: str) -> Iterator[Poem]:
    """Yields `{id, text, title, author, dynasty}` in the order of the package.

    The id is the place in the package: `tang.12000.345` is entry 345 (from 0) of `poet.tang.12000.json`.
    """
    paths = (dist_folder / "quantangshi").glob(f"poet.{dynasty}.*.json")
    for first, path in sorted((int(path.name.split(".")[2]), path) for path in paths):
        for number, poem in enumerate(json.loads(path.read_text("utf-8"))):
            text = unicodedata.normalize("NFC", "".join(poem["paragraphs"]))
            title = unicodedata.normalize("NFC", " ".join(poem["title"].split()))
            yield {
                "id": f"{dynasty}.{first}.{number}",
                "text": text,
                "title": title,
                "author": poem["author"],
                "dynasty": DYNASTIES[dynasty],
            }


def keep_clean(poems: Iterable[Poem], openings: set[str], dropped: Counter[str]) -> Iterator[Poem]:
    """Yields what is whole: no lacuna, no note, no variant reading, not a poem that was there before.

    Args:
        poems: in the order of the package, the first of two alike is kept.
        openings: the first characters of the poems before; this adds to it. A poem that is given to two poets, or
            twice with other characters, mostly has the same opening.
        dropped: this adds to it, by reason.
    """
    for poem in poems:
        opening = _NOT_HAN.sub("", poem["text"])[:OPENING_CHARACTERS]
        if not _TEXT.fullmatch(poem["text"]):
            dropped["a mark that is neither a character nor punctuation of verse"] += 1
        elif not _TITLE.fullmatch(poem["title"]):
            dropped["a note in the title"] += 1
        elif not MIN_CHARACTERS <= len(poem["text"]) <= MAX_CHARACTERS:
            dropped[f"not {MIN_CHARACTERS} to {MAX_CHARACTERS} characters"] += 1
        elif opening in openings:
            dropped["begins as another does"] += 1
        else:
            openings.add(opening)
            yield poem


def choose(poems: Iterable[Poem], count: int) -> list[Poem]:
    """`count` of `poems`, by hash of the text: no order of the package in the choice.

    The hash is salted. With the plain one, whoever splits the rows by a hash of the text would find no test rows of
    the poets that were cut to `MAX_POEMS_PER_POET`.
    """
    return sorted(poems, key=lambda poem: hashlib.sha256(f"choose:{poem['text']}".encode()).digest())[:count]


def _place(poem: Poem) -> tuple[str, int, int]:
    _, first, number = poem["id"].split(".")
    return poem["dynasty"], int(first), int(number)


def write_rows(path: Path, poems: Iterable[Poem]) -> None:
    """Writes `poems` in the order of the package as gzipped JSON lines, the same bytes each time."""
    ordered = sorted(poems, key=_place)
    lines = "".join(json.dumps(poem, ensure_ascii=False, separators=(",", ":")) + "\n" for poem in ordered)
    path.write_bytes(gzip.compress(lines.encode("utf-8"), 9, mtime=0))


def main(dist_folder: Path, output_folder: Path) -> None:
    """Writes both files into `output_folder`."""
    openings: set[str] = set()
    clean: dict[str, list[Poem]] = {}
    for dynasty in DYNASTIES:
        dropped: Counter[str] = Counter()
        clean[dynasty] = list(keep_clean(read_poems(dist_folder, dynasty), openings, dropped))
        sys.stdout.write(f"{dynasty}: {len(clean[dynasty])} kept, {dict(dropped)}\n")
    sizes = Counter(poem["author"] for poem in clean["tang"] if poem["author"] not in NO_POET)
    poets = [poet for poet, _ in sizes.most_common(NUM_POETS)]
    task = [
        poem
        for poet in poets
        for poem in choose((poem for poem in clean["tang"] if poem["author"] == poet), MAX_POEMS_PER_POET)
    ]
    used = {poem["id"] for poem in task}
    others = [
        poem
        for dynasty, count in NUM_OTHER_POEMS.items()
        for poem in choose((poem for poem in clean[dynasty] if poem["id"] not in used), count)
    ]
    write_rows(output_folder / "tang_poets.jsonl.gz", task)
    write_rows(output_folder / "poems.jsonl.gz", others)
    sys.stdout.write(f"task: {dict(Counter(poem['author'] for poem in task))}; others: {len(others)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
