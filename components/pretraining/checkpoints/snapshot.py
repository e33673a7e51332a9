"""What DeepSpeed would write to disk, as copies in host memory.

DeepSpeed 0.19.8 hands every file of a checkpoint to its checkpoint engine, an extension point
(`runtime/checkpoint_engine`). For one save ours stands there and copies instead of writing; the training goes on as
soon as the copies are made, and another thread writes them.

Memory: one snapshot, as large as what the rank writes. With N ranks and P weights, in bf16: 12 P / N bytes at stages 1
and 2 (fp32 weights and two moments), and 2 P more on rank 0; 14 P / N at stage 3; 14 P at stage 0, rank 0 alone.
It is there from the save until the last file is written, each file's part until that is written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TAG = "state"
"""DeepSpeed's name of the folder with its files, inside ours."""


def take_snapshot(engine: Any, folder: Path) -> dict[Path, Any]:
    """Copies of all that this rank is to write, by file. All ranks call it.

    Args:
        engine: DeepSpeed's.
        folder: of the checkpoint; DeepSpeed makes its own below it.
    """
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    files: dict[Path, Any] = {}

    class Copying(CheckpointEngine):  # type: ignore[misc]
        """Keeps what it is to save."""

        def create(self, info: Any) -> None:
            """Nothing to prepare."""

        def save(self, state_dict: Any, path: str) -> None:
            files[Path(path)] = host_copy(state_dict, {})

        def load(self, path: str, map_location: Any = None) -> Any:
            raise NotImplementedError("it only saves")

        def commit(self, info: Any) -> bool:
            return True

        def preserves_storage_sharing(self) -> bool:
            return False  # so that DeepSpeed makes no copies of its own before

    before, engine.checkpoint_engine = engine.checkpoint_engine, Copying()
    try:
        engine.save_checkpoint(str(folder), tag=TAG, client_state={}, save_latest=False)
    finally:
        engine.checkpoint_engine = before
    return files


def host_copy(item: Any, copies: dict[int, torch.Tensor]) -> Any:
    """A copy that nothing shares with `item`, its tensors in host memory.

    Args:
        item: tensors in dicts, lists and tuples, and any other values.
        copies: of tensors that were met before, by id: a tensor that is there twice is copied once.
    """
    if isinstance(item, torch.Tensor):
        if id(item) not in copies:
            copies[id(item)] = item.detach().to("cpu", copy=True)
        return copies[id(item)]
    if isinstance(item, Mapping):
        made = copy.copy(item)  # also what is no plain dict, as an OrderedDict with attributes
        for key, value in item.items():
            made[key] = host_copy(value, copies)  # type: ignore[index]
        return made
    if type(item) in (list, tuple):
        return type(item)(host_copy(value, copies) for value in item)
    return copy.deepcopy(item)  # a loss scaler changes with every step
