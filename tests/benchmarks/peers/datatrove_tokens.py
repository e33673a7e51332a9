"""Raw text to token files by datatrove's tokenize pipeline, two tasks on two workers.

Runs in the peers' environment: `python datatrove_tokens.py SETTINGS.json`; prints one line of JSON. Variants:
`tokenize` writes the documents' tokens in their order, the least that it can do; `shuffle` is as its examples have it,
documents shuffled in each file and then merged into one. Neither cuts into sequences; a reader does at training time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

TOKENS_PER_FILE = int(1e9)


def main() -> None:
    """One side, once."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    variant, work, workers = settings["variant"], Path(settings["work"]), int(settings["num_processes"])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "LOGURU_LEVEL": "ERROR"}
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger  # type: ignore[import-not-found]

    seconds: dict[str, float] = {}
    began = time.perf_counter()
    folder = str(Path(settings["files"][0]).parent)
    shuffle = variant == "shuffle"
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="part-*.jsonl", text_key="text", id_key="id"),
            DocumentTokenizer(
                output_folder=str(work / "tokens"),
                tokenizer_name_or_path=str(Path(settings["tokenizer"]) / "tokenizer.json"),
                shuffle_documents=shuffle,
                seed=0,
            ),
        ],
        tasks=workers,
        workers=workers,
        logging_dir=str(work / "logs"),
        start_method="fork",  # the quickest, and its children's CPU time is known
    ).run()
    seconds["tokenize"] = time.perf_counter() - began
    if shuffle:
        merger = DocumentTokenizerMerger(
            str(work / "tokens"), str(work / "merged"), "merged", max_tokens_per_file=TOKENS_PER_FILE, seed=0
        )
        LocalPipelineExecutor(pipeline=[merger], tasks=1, logging_dir=str(work / "merge_logs")).run()
        seconds["merge"] = time.perf_counter() - began - seconds["tokenize"]
    total = time.perf_counter() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    out = work / ("merged" if shuffle else "tokens")
    told = {
        "seconds": total,
        "parts": seconds,
        "num_documents": sum(path.stat().st_size // 8 for path in out.glob("*.index")),
        "num_tokens": sum(path.stat().st_size // 2 for path in out.glob("*.ds")),
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
