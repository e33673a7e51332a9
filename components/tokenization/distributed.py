"""Tokenizing on Ray Data: tasks of some 32 MiB of text, the tokenizer and the pieces it has met kept by each worker.

Tasks, not an actor pool: on two CPUs actors that hold them starve the rest (ray#44687), and loading takes 50 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.corpus.distributed import in_groups, small_machine_context
from components.tokenization.encoding import EncodeTask, Encoding, write_token_unit
from infra.storage.units import UnitStore


def make_token_units(tasks: Sequence[EncodeTask], encoding: Encoding, store: UnitStore) -> Iterator[Path]:
    """Makes token units; the path of each, in the order of `tasks`."""
    import ray

    groups = list(in_groups([task.num_bytes for task in tasks]))

    def make(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            store.mirror.pull(Path(encoding.tokenizer_path))
            for task in tasks[slice(*groups[index])]:
                store.mirror.pull(Path(task.path))
                path = store.put(task.key, partial(write_token_unit, task, encoding))
                yield pa.table({"path": [str(path)]})

    with small_machine_context():
        dataset = ray.data.from_items([{"index": i} for i in range(len(groups))], override_num_blocks=len(groups))
        dataset = dataset.map_batches(make, batch_size=1, batch_format="numpy")
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(Path, block.column("path").to_pylist())
