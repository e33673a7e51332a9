"""Tokenizing on Ray Data: one task a row group (16,384 documents or 32 MiB), the tokenizer loaded once a worker.

Tasks, not an actor pool: on two CPUs actors that hold them starve the rest (ray#44687), and loading takes 50 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.corpus.distributed import small_machine_context
from components.tokenization.encoding import EncodeTask, encode
from infra.storage.mirror import Mirror


def encoded_tables(
    tasks: Sequence[EncodeTask], tokenizer_path: str, mirror: Mirror = Mirror(Path("/"))
) -> Iterator[tuple[int, pa.Table]]:
    """(position of the task, its documents), in the order of `tasks`; perhaps several tables a task.

    Args:
        tasks: what to tokenize.
        tokenizer_path: tokenizer.json.
        mirror: brings both to the machine of a worker.
    """
    import ray

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            mirror.pull(Path(tasks[index].path))
            mirror.pull(Path(tokenizer_path))
            table = encode(tasks[index], tokenizer_path)
            yield table.append_column("task", pa.array([index] * len(table), pa.int32()))

    with small_machine_context():
        indices = [{"index": position} for position in range(len(tasks))]
        dataset = ray.data.from_items(indices, override_num_blocks=len(tasks))
        dataset = dataset.map_batches(read, batch_size=1, batch_format="numpy")
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for index in sorted(set(block.column("task").to_pylist())):
                yield index, block.filter(pc.equal(block.column("task"), index))
