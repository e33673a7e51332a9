"""Peak memory of the step `tokenizer` on corpora of growing size, with the same bound on the sample.

    python -m tests.benchmarks.tokenizer_memory --megabytes 100 1000 --bound 64 --kind byte_bpe

Text is glosses in random order, in which one word in 50 is new. Each training runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from components.corpus.writer import ParquetSink

from components.corpus.normalise import text_id
from components.tokenization.config import TokenizerConfig
from components.tokenization.step import train_tokenizer
from infra.journal.step import Artifact, StepContext
from infra.tracking.client import StepTracker

GLOSSES = Path(__file__).parents[2] / "conf/data/wordnet/glosses.jsonl.gz"
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("num_bytes", pa.int64())])


def documents() -> Iterator[str]:
    """Documents of some 2,000 bytes, without end."""
    draw = random.Random(1)
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as stream:
        glosses = [str(json.loads(line)["text"]) for line in stream]
    while True:
        new = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(6))
        yield " ".join([*draw.choices(glosses, k=24), *new])


def write_corpus(folder: Path, num_bytes: int) -> None:
    """A training split of that size, and a small validation split."""
    endless = documents()
    for split, size in (("train", num_bytes), ("validation", 1 << 20)):
        sink = ParquetSink(folder, split, SCHEMA)
        while sink.num_bytes < size:
            texts = list(islice(endless, 1024))
            sizes = [len(text.encode()) for text in texts]
            sink.add(pa.table([[text_id(text) for text in texts], texts, ["s"] * 1024, sizes], schema=SCHEMA))
        sink.close()


def train(corpus: Path, work: Path, kind: Any, bound: int) -> None:
    """Trains, and prints the peak of this process in MB."""
    (work / "output").mkdir(parents=True)
    config = TokenizerConfig(kind=kind, vocab_size=32_768, max_training_bytes=bound)
    context = StepContext(
        step="tokenizer", key="0" * 32, output=work / "output", work=work, raw={}, tracker=StepTracker(step="tokenizer")
    )
    train_tokenizer(config, {"corpus": Artifact(step="corpus", key="0" * 32, path=corpus, metrics={})}, context)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    """Prints a line a corpus."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--bound", type=int, default=64, help="megabytes of the sample")
    parser.add_argument("--kind", default="byte_bpe")
    parser.add_argument("--corpus", type=Path, help="train on this one, in this process")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if told.corpus:
            train(told.corpus, Path(folder) / "work", told.kind, told.bound * 10**6)
            return
        for megabytes in told.megabytes:
            corpus = Path(folder) / str(megabytes)
            corpus.mkdir()
            write_corpus(corpus, megabytes * 10**6)
            again = [sys.executable, "-m", __spec__.name, "--corpus", str(corpus)]
            again += ["--bound", str(told.bound), "--kind", told.kind]
            peak = subprocess.run(again, check=True, capture_output=True, text=True).stdout.split()[-1]
            print(f"{megabytes} MB of text, {told.bound} MB of sample, {told.kind}: peak {peak} MB", flush=True)


if __name__ == "__main__":
    main()
