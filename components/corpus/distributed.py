"""Reading and cleaning on Ray Data: one task a file, so that files stream through workers in bounded memory.

One large file is read by one worker; cut it into several to use more. Order is kept, so the result does not depend on
the number of workers. A start costs about 2 s (Ray 2.60, 2 cores), so a step runs one execution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from components.corpus.documents import ReadTask, examine


@contextmanager
def small_machine_context() -> Iterator[None]:
    """Ray Data settings that fit a laptop and keep order, for the datasets made within.

    Blocks of 16 MiB instead of 128, since a local object store may hold 150 MB; few shuffle partitions instead of 200;
    `preserve_order`, without which the row order differs from run to run.
    """
    from ray.data import DataContext

    settings = DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    settings.enable_progress_bars = False
    settings.target_max_block_size = 16 << 20
    settings.min_parallelism = 2
    settings.print_on_execution_start = False
    with DataContext.current(settings):
        yield


def examined_tables(tasks: Sequence[ReadTask]) -> Iterator[pa.Table]:
    """Tables of `EXAMINED_SCHEMA` over all files, in the order of `tasks` and of their rows."""
    import ray

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            yield from examine(tasks[index])

    with small_machine_context():
        indices = [{"index": position} for position in range(len(tasks))]
        dataset = ray.data.from_items(indices, override_num_blocks=len(tasks))
        dataset = dataset.map_batches(read, batch_size=1, batch_format="numpy")
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
