"""The tokenizer and nothing else, on all cores, all texts in memory before the clock starts.

Runs in the peers' environment: `python tokenizer_alone.py SETTINGS.json`; prints one line of JSON. Variants:
`threads` encodes in one process with the library's threads; `processes` in as many processes of one thread, which have
the texts by fork and hand nothing back; `no_ids` is `threads` without taking the ids out of the library.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH_TEXTS = 1024


def encode(tokenizer: Any, texts: list[str], *, take_ids: bool) -> int:
    """The number of tokens; 0 where ids are not taken."""
    arrays: list[np.ndarray[Any, np.dtype[np.uint32]]] = []
    for first in range(0, len(texts), BATCH_TEXTS):
        encodings = tokenizer.encode_batch_fast(texts[first : first + BATCH_TEXTS])
        if take_ids:
            arrays.extend(np.array(encoding.ids, dtype=np.uint32) for encoding in encodings)
    return sum(len(array) for array in arrays)


def main() -> None:
    """One side, once."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    variant, workers = settings["variant"], int(settings["num_processes"])
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if variant == "processes" else "true"
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(settings["tokenizer"]) / "tokenizer.json"))
    texts: list[str] = []
    for path in settings["files"]:
        with Path(path).open(encoding="utf-8") as stream:
            texts.extend(json.loads(line)["text"] for line in stream)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    if variant == "processes":
        context = multiprocessing.get_context("fork")
        counts = context.Array("q", workers)

        def work(rank: int) -> None:
            counts[rank] = encode(tokenizer, texts[rank::workers], take_ids=True)

        processes = [context.Process(target=work, args=(rank,)) for rank in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        num_tokens = sum(counts[:])
    else:
        num_tokens = encode(tokenizer, texts, take_ids=variant == "threads")
    total = time.perf_counter() - began
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in after) - before.ru_utime - before.ru_stime
    told = {"seconds": total, "parts": {}, "num_documents": len(texts), "num_tokens": num_tokens, "cpu_seconds": cpu}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
