"""Raw text to packed shards: ours on Ray, Hugging Face `datasets`, datatrove, and the tokenizer alone, in turn.

    python -m tests.benchmarks.corpus_speed CACHE --peers VENV [--megabytes 100] [--files 8] [--rounds 3]

All sides read the same JSON lines (`peers/text.py`) with the same tokenizer, a byte-level BPE that our trainer makes
once from a quarter of the text, and have two processes, or as many as the machine has cores. Each side is a process of
its own, run alone; a round runs each once, every other round in the other order. Printed are medians and the median
over the rounds of the ratio to ours. Every side's tokens are counted; they must be equal.

VENV is an environment that the benchmark makes with the versions below; nothing enters the project's own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.cluster.environment import OFFLINE
from tests.benchmarks.peers import text

PROJECT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).parent / "peers"
PACKAGES = ("tokenizers==0.23.3", "transformers==5.23.0", "datasets==5.2.0", "datatrove[io,processing]==0.10.1")
SIDES = {
    "ours": ("ours", "ours"),
    "datasets": ("hf_datasets.py", "lean"),
    "datasets as run_clm": ("hf_datasets.py", "run_clm"),
    "datasets, threads": ("hf_datasets.py", "threads"),
    "datatrove": ("datatrove_tokens.py", "tokenize"),
    "datatrove, shuffled": ("datatrove_tokens.py", "shuffle"),
    "tokenizer, threads": ("tokenizer_alone.py", "threads"),
    "tokenizer, processes": ("tokenizer_alone.py", "processes"),
    "tokenizer, no ids": ("tokenizer_alone.py", "no_ids"),
}
VOCAB_SIZE = 32768
TRAINING_SHARE = 4
SIDE_SECONDS = 3600.0


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def make_tokenizer(cache: Path, files: Sequence[Path]) -> Path:
    """The folder of the tokenizer, trained once."""
    from components.tokenization.special import save_for_transformers
    from components.tokenization.training import train

    folder = cache / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        texts = [one for number, one in enumerate(text.texts(files)) if number % TRAINING_SHARE == 0]
        batches = [texts[first : first + 1024] for first in range(0, len(texts), 1024)]
        save_for_transformers(train("byte_bpe", lambda: batches, VOCAB_SIZE, 2), str(folder))
    return folder


def run_side(name: str, settings: Mapping[str, Any], python: Path, scratch: Path) -> dict[str, Any]:
    """What the side tells of one run, in a process of its own.

    Raises:
        RuntimeError: it did not end well.
    """
    script, variant = SIDES[name]
    with tempfile.TemporaryDirectory(dir=scratch, prefix="side-") as work:
        told = Path(work) / "settings.json"
        told.write_text(json.dumps({**settings, "variant": variant, "work": work}))
        environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"}
        if script == "ours":
            command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.peers.ours", str(told)]
            environment["PYTHONPATH"] = str(PROJECT)
        else:
            command = [str(python), "-W", "ignore", str(PEERS / script), str(told)]
            environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=SIDE_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def measure(options: argparse.Namespace) -> tuple[text.Text, dict[str, list[dict[str, Any]]]]:
    """What each side told, once a round."""
    written = text.write(options.cache, options.megabytes * 1_000_000, options.files)
    python = peers_python(options.peers)
    settings = {
        "files": [str(path) for path in written.files],
        "tokenizer": str(make_tokenizer(options.cache, written.files)),
        "sequence_length": options.sequence_length,
        "num_processes": options.processes,
        "corpus": json.loads(options.corpus),
    }
    scratch = options.cache / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    names = [name for name in SIDES if not options.sides or name in options.sides]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in reversed(names) if number % 2 else names:
            told = run_side(name, settings, python, scratch) | {"load": os.getloadavg()[0]}
            found[name].append(told)
            print(f"round {number}: {name}: {json.dumps(told)}", file=sys.stderr, flush=True)
    return written, found


def plain(told: Mapping[str, Any]) -> float:
    """Seconds without Ray's start and end."""
    return float(told["seconds"])


def started(told: Mapping[str, Any]) -> float:
    """Seconds with both."""
    return float(told["seconds"] + told["ray_start_seconds"] + told["ray_stop_seconds"])


def cpu(told: Mapping[str, Any]) -> float:
    """Seconds of all cores, what starts and imports take included: what a busy machine changes least."""
    return float(told["cpu_seconds"])


def _ratio(
    rounds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    of: Callable[[Mapping[str, Any]], float],
    to: Callable[[Mapping[str, Any]], float],
) -> str:
    """Median over the rounds; empty without our side."""
    return f"{statistics.median(of(a) / to(b) for a, b in zip(rounds, ours, strict=True)):.2f}" if ours else ""


def show(written: text.Text, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints the table."""
    table = Table(title="Raw text to packed shards", title_justify="left", box=None)
    for column in (
        "side",
        "s",
        "lowest",
        "highest",
        "MB/s",
        "CPU s",
        "CPU / ours",
        "/ ours",
        "/ ours, Ray started",
        "tokens",
    ):
        table.add_column(column, justify="left" if column == "side" else "right")
    ours = found.get("ours", [])
    for name, rounds in found.items():
        seconds = [one["seconds"] for one in rounds]
        table.add_row(
            name,
            f"{statistics.median(seconds):.1f}",
            f"{min(seconds):.1f}",
            f"{max(seconds):.1f}",
            f"{written.num_bytes / 1e6 / statistics.median(seconds):.2f}",
            f"{statistics.median(one['cpu_seconds'] for one in rounds):.1f}",
            _ratio(rounds, ours, cpu, cpu),
            _ratio(rounds, ours, plain, plain),
            _ratio(rounds, ours, plain, started),
            f"{rounds[-1]['num_tokens']:,}",
        )
    percentiles = ", ".join(f"p{name} {value:,}" for name, value in written.percentiles.items())
    shares = ", ".join(f"{name} {size / written.num_bytes:.0%}" for name, size in written.by_source.items())
    table.caption = (
        f"{written.num_bytes / 1e6:.0f} MB of text in {written.num_documents:,} documents ({percentiles} bytes; "
        f"{shares}), {len(written.files)} files; a ratio above 1: slower than ours"
    )
    Console(width=160).print(table)
    for one in ours[-1:]:
        spent = one["parts"] | {"Ray's start": one["ray_start_seconds"], "its end": one["ray_stop_seconds"]}
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
        print(f"ours, last round: {parts}")


def main() -> None:
    """Parses the arguments, prints the table; exits with 1 if sides counted different tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of packages, text and tokenizer; kept")
    parser.add_argument("--peers", type=Path, required=True, help="environment of the peers; made if it is not there")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--corpus", default="{}", help="more of CorpusConfig for our side, as JSON")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="those alone; all without it")
    options = parser.parse_args()
    written, found = measure(options)
    show(written, found)
    counts = {name: rounds[-1]["num_tokens"] for name, rounds in found.items() if rounds[-1]["num_tokens"]}
    sys.exit(f"sides counted different tokens: {counts}" if len(set(counts.values())) > 1 else 0)


if __name__ == "__main__":
    main()
