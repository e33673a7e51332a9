"""Which evaluation sets a corpus was compared with: told by the corpus, carried by shards and models, asked by stages.

A stage that judges a model on a set refuses one whose pretraining text was not looked through for that set, unless it
is told to take it: a figure on texts that a model has read says little (Brown et al. 2020, section 4).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.corpus.decontamination import DecontaminationConfig, read_sets, set_digest
from infra.errors import DataError

FILE_NAME = "evaluation_sets.json"


def write(folder: Path, config: DecontaminationConfig | None, sets: Mapping[str, Mapping[str, str]]) -> None:
    """Tells in `folder`, that of a corpus, which sets it was compared with.

    Args:
        folder: where to write.
        config: how; None: only for texts that are equal.
        sets: text by id, by the name of the set.
    """
    told: dict[str, Any] = {
        "checked": config is not None,
        **(config.model_dump() if config else {}),
        "sets": {name: {"digest": set_digest(list(texts)), "num_texts": len(texts)} for name, texts in sets.items()},
    }
    _save(folder, told)


def carry(source: Path, target: Path) -> None:
    """What the artifact in `source` tells holds for the one in `target` too, which is made from it."""
    if (source / FILE_NAME).exists():
        shutil.copyfile(source / FILE_NAME, target / FILE_NAME)


def write_unknown(folder: Path, origin: str) -> None:
    """Nobody knows what a model that starts from `origin` has read."""
    _save(folder, {"checked": False, "starts_from": origin, "sets": {}})


def require_checked(model: Path, task: Path, where: str) -> None:
    """Refuses a model that may have read what it is to be judged on.

    Args:
        model: folder of the artifact of the model.
        task: folder of the artifact of the task.
        where: name of the config of the stage, for the message.

    Raises:
        DataError: its corpus was not compared with the evaluation sets of the task.
    """
    path = model / FILE_NAME
    told: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"checked": False, "sets": {}}
    known = {entry["digest"] for entry in told["sets"].values()} if told["checked"] else set()
    unknown = [name for name, texts in read_sets(task).items() if set_digest(list(texts)) not in known]
    if unknown:
        cause = f"it starts from {told['starts_from']}" if "starts_from" in told else "corpus.decontamination is off"
        raise DataError(
            f"{where}: the text that the model was pretrained on was not compared with {' and '.join(unknown)} "
            f"({cause if not told['checked'] else 'other rows now'}), so it may have read what it is judged on; "
            f"if that is meant, set {where}.allow_unchecked_model=true"
        )


def _save(folder: Path, told: Mapping[str, Any]) -> None:
    (folder / FILE_NAME).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
