"""Raw text to sequences of one length by Hugging Face `datasets`, as scripts like run_clm.py do it.

Runs in the peers' environment: `python hf_datasets.py SETTINGS.json`; prints one line of JSON. Variants: `lean` keeps
input_ids alone; `run_clm` keeps the attention mask and adds labels, as the script does; `threads` is lean in one
process, with the threads of the tokenizer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

BATCH_ROWS = 1000  # the default of map


def main() -> None:
    """One side, once."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    variant, work, length = settings["variant"], Path(settings["work"]), int(settings["sequence_length"])
    os.environ |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if variant == "threads" else "false"
    import datasets  # type: ignore[import-not-found]
    from transformers import PreTrainedTokenizerFast

    num_proc = None if variant == "threads" else int(settings["num_processes"])
    datasets.disable_caching()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings["tokenizer"])
    seconds: dict[str, float] = {}
    began = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = now - last, now

    def tokenize(rows: dict[str, list[str]]) -> Any:
        if variant == "run_clm":
            return tokenizer(rows["text"])
        return {"input_ids": tokenizer(rows["text"], return_attention_mask=False)["input_ids"]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain.from_iterable(values)) for name, values in rows.items()}
        total = len(joined["input_ids"]) // length * length
        cut = {name: [values[i : i + length] for i in range(0, total, length)] for name, values in joined.items()}
        if variant == "run_clm":
            cut["labels"] = cut["input_ids"].copy()
        return cut

    raw = datasets.load_dataset(
        "json", data_files=settings["files"], split="train", cache_dir=str(work / "cache"), num_proc=num_proc
    )
    lap("read")
    tokens = raw.map(tokenize, batched=True, batch_size=BATCH_ROWS, num_proc=num_proc, remove_columns=raw.column_names)
    lap("tokenize")
    grouped = tokens.map(group, batched=True, batch_size=BATCH_ROWS, num_proc=num_proc)
    lap("group")
    grouped.save_to_disk(str(work / "out"), num_proc=num_proc)
    lap("save")
    total = time.perf_counter() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    import pyarrow.compute as pc

    lengths = sum(pc.sum(pc.list_value_length(chunk)).as_py() for chunk in tokens.data.column("input_ids").chunks)
    told = {
        "seconds": total,
        "parts": seconds,
        "num_documents": len(raw),
        "num_tokens": lengths,
        "num_packed_tokens": len(grouped) * length,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
