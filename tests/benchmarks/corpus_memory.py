"""Peak memory from raw text to packed shards, all processes together, at two sizes of input.

    python -m tests.benchmarks.corpus_memory CACHE [--megabytes 100 1000] [--rounds 3] [--single-file [--gzip]]

The steps `corpus` and `token_shards` run as in `corpus_speed.py`, in a process of their own that starts Ray. Five times
a second the proportional set sizes (PSS, /proc/PID/smaps_rollup) of that process and of all below it are added up: the
driver, Ray's own processes, workers, and the object store, of which every process that maps a page counts its part, so
that nothing counts twice. The peak is the largest sum; it varies by 5 % from run to run, so sizes take turns and the
median counts. Not in it: page cache, and peaks of under 0.2 s.

A compressed file is one unit of work, whatever its size: `--single-file --gzip` is the hardest for memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.corpus_speed import PROJECT, make_tokenizer
from tests.benchmarks.peers import text

SAMPLE_SECONDS = 0.2
BOUND = 0.15
MIB = 1 << 20


def kind(process: psutil.Process, driver: int) -> str:
    """What the process is: driver, worker (Ray names them `ray::...`), or Ray's own."""
    if process.pid == driver:
        return "driver"
    first = next(iter(process.cmdline()), "")
    return "workers" if first.startswith("ray::") else "Ray"


def sample(driver: int) -> Counter[str]:
    """Bytes of PSS by kind of process."""
    found: Counter[str] = Counter()
    try:
        root = psutil.Process(driver)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            found[kind(process, driver)] += process.memory_full_info().pss
        except (psutil.Error, OSError):  # it has ended
            continue
    return found


def compressed(path: Path, scratch: Path) -> Path:
    """A file in `scratch` with what is in `path`."""
    made = scratch / path.parent.name / f"{path.name}.gz"
    made.parent.mkdir(exist_ok=True)
    with path.open("rb") as source, gzip.open(made, "wb", compresslevel=1) as sink:
        shutil.copyfileobj(source, sink, MIB)
    return made


def measure(settings: Mapping[str, Any], scratch: Path) -> tuple[Counter[str], dict[str, Any]]:
    """The sample with the largest sum, and what the side told.

    Raises:
        RuntimeError: it did not end well.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="memory-") as work:
        told = Path(work) / "settings.json"
        told.write_text(json.dumps({**settings, "work": work}))
        out, log = Path(work) / "out", Path(work) / "log"
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.peers.ours", str(told)]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        with out.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=stdout, stderr=stderr)
        peak: Counter[str] = Counter()
        try:
            while process.poll() is None:
                began = time.monotonic()
                now = sample(process.pid)
                if now.total() > peak.total():
                    peak = now
                time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - began)))
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(f"ours ended with {process.returncode}\n{log.read_text(errors='replace')[-3000:]}")
        return peak, json.loads(out.read_text().strip().splitlines()[-1])


def main() -> None:
    """Prints the table; exits with 1 if memory grew by 15 % or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of packages, text and tokenizer; kept")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--file-megabytes", type=int, default=25)
    parser.add_argument("--single-file", action="store_true")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--corpus", default="{}", help="more of CorpusConfig, as JSON")
    options = parser.parse_args()
    scratch = options.cache / "scratch-memory"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    table = Table(title="Peak memory, MiB of PSS", title_justify="left", box=None)
    for column in (
        "input, MB",
        "files",
        "peak",
        "lowest",
        "highest",
        "growth",
        "driver",
        "workers",
        "Ray",
        "s",
        "steps, s",
    ):
        table.add_column(column, justify="right")
    turns: dict[int, list[tuple[Counter[str], dict[str, Any]]]] = {megabytes: [] for megabytes in options.megabytes}
    num_files = {size: 1 if options.single_file else max(1, size // options.file_megabytes) for size in turns}
    for _ in range(options.rounds):
        for megabytes, found in turns.items():
            written = text.write(options.cache, megabytes * 1_000_000, num_files[megabytes])
            settings = {
                "files": [str(compressed(path, scratch) if options.gzip else path) for path in written.files],
                "tokenizer": str(make_tokenizer(options.cache, written.files)),
                "sequence_length": options.sequence_length,
                "num_processes": options.processes,
                "corpus": json.loads(options.corpus),
            }
            found.append(measure(settings, scratch))
    first, growth = 0, 0.0
    for megabytes, found in turns.items():
        ordered = sorted(found, key=lambda turn: turn[0].total())
        peak, told = ordered[len(ordered) // 2]
        first = first or peak.total()
        growth = peak.total() / first - 1
        lowest, highest = (f"{turn[0].total() / MIB:,.0f}" for turn in (ordered[0], ordered[-1]))
        cells = [f"{peak[name] / MIB:,.0f}" for name in ("driver", "workers", "Ray")]
        steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in told["parts"].items())
        table.add_row(
            str(megabytes),
            str(num_files[megabytes]),
            f"{peak.total() / MIB:,.0f}",
            lowest,
            highest,
            f"{growth:+.1%}",
            *cells,
            f"{told['seconds']:.0f}",
            steps,
        )
    Console(width=140).print(table)
    sys.exit(growth >= BOUND)


if __name__ == "__main__":
    main()
