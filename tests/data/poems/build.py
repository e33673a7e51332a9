"""Makes poems.jsonl.gz from the npm package `chinese-poetry` 2.0.1: 300 texts each of 唐诗, 宋词 and 元曲.

npm pack chinese-poetry@2.0.1 && tar xzf chinese-poetry-2.0.1.tgz
python tests/data/poems/build.py package/dist tests/data/poems
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

SOURCES = {
    "唐诗": "quantangshi/poet.tang.1000.json",
    "宋词": "songci/ci.song.1000.json",
    "元曲": "yuanqu/yuanqu.json",
}
TEXTS_OF_EACH = 300


def main(source: Path, output: Path) -> None:
    """Writes the sample, the same bytes each time."""
    rows = []
    for label, name in SOURCES.items():
        poems = json.loads((source / name).read_text("utf-8"))
        texts = ["".join(poem["paragraphs"]) for poem in poems]
        rows += [{"文本": text, "类别": label} for text in [t for t in texts if len(t) >= 20][:TEXTS_OF_EACH]]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (output / "poems.jsonl.gz").write_bytes(gzip.compress(lines.encode("utf-8"), 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
