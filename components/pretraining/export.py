"""What a training leaves: a Hugging Face folder that loads with nothing of ours, the metric history, and the numbers.

Weights are the fp32 master weights. Everything is written beside its place and renamed, so that what is there is
whole, and an attempt that finds it need not train again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.errors import StorageError
from infra.storage.files import fsync

EXPORT_NAME = "export"
RESULT_NAME = "result.json"
HISTORY_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.json"
MODEL_NAME = "model"
PREFIX_NOTE = """
It was trained with prompts that see themselves whole (prefix_lm). transformers, and the steps that go on with this
model, give it a causal mask alone, under which it was neither trained nor validated.
"""
SEQUENCE_NOTE = """
It was trained with attention and positions that run through whole packed sequences (attention_scope=sequence): it has
seen what stood before a document, and few documents begin at position 0.
"""


def model_card(
    *,
    title: str,
    task: str,
    key: str,
    data_license: str | None,
    metrics: Mapping[str, float | int],
    settings: Mapping[str, Any],
) -> str:
    """README.md of a model folder: lineage, licence of the data, what was measured.

    Args:
        title: its name.
        task: the transformers pipeline task.
        key: of the step that made it.
        data_license: of the text it was trained on, one line.
        metrics: by name.
        settings: what it was trained with.
    """
    note = PREFIX_NOTE if settings.get("objective") == "prefix_lm" else ""
    note += SEQUENCE_NOTE if settings.get("attention_scope") == "sequence" else ""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    told = "\n".join(f"- `{name}`: `{value}`" for name, value in settings.items())
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags:
- fromzero
---
# {title}

Trained by fromzero. Lineage key of the step that made it: `{key}`.

Licence of the training data: {data_license or "not stated; ask whoever made this model"}.

| metric | value |
|---|---|
{rows}

Validation metrics are on held-out documents of the same corpus; `metric/source` is over those of one source. A
pseudo-perplexity is over tokens that were hidden together, and no perplexity of a text. The model says nothing true by
design: it has seen little text, and no one has examined it for bias.
{note}
Settings:

{told}
"""


def write_export(
    work: Path,
    *,
    attempt: str,
    model: Any,
    state: Mapping[str, torch.Tensor],
    tokenizer: Path,
    num_sentinels: int = 0,
    card: str,
    history: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Writes `export/` under `work`. One process calls it.

    Args:
        work: of the step.
        attempt: a word that no other attempt has.
        model: the language model of transformers; gives class and config.
        state: its weights in fp32, by name.
        tokenizer: folder whose files go beside the weights.
        num_sentinels: of span corruption; `<extra_id_0>` and so on become the tokens after its last.
        card: README.md.
        history: metrics.jsonl.
        samples: samples.json.
        result: result.json.

    Raises:
        StorageError: it cannot be written.
    """
    folder = work / f"{EXPORT_NAME}.{attempt}.partial"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tokenizer, folder / MODEL_NAME)
        if num_sentinels:
            add_sentinels(folder / MODEL_NAME, num_sentinels)
        saved = type(model)(model.config).to(torch.float32)
        frozen = {name for name, parameter in saved.named_parameters() if not parameter.requires_grad}
        buffers = {name: value.float() for name, value in model.named_buffers() if value.is_floating_point()}
        trained = {name: value for name, value in state.items() if name not in frozen}  # tables that a formula gives
        saved.load_state_dict(
            trained | {name: buffers[name] for name in buffers if name in saved.state_dict()}, strict=False
        )
        saved.tie_weights()
        if model.can_generate():
            saved.generation_config = model.generation_config
        saved.config.dtype = torch.float32
        saved.save_pretrained(folder / MODEL_NAME)
        (folder / MODEL_NAME / "README.md").write_text(card, encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in history)
        (folder / HISTORY_NAME).write_text(lines, encoding="utf-8")
        (folder / SAMPLES_NAME).write_text(json.dumps(dict(samples), ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / RESULT_NAME).write_text(json.dumps(dict(result), indent=1) + "\n", encoding="utf-8")
        for path in folder.rglob("*"):
            if path.is_file():
                fsync(path)
        folder.replace(work / EXPORT_NAME)
        fsync(work)
    except OSError as error:
        raise StorageError(f"{folder}: the trained model cannot be written: {error}") from error


def add_sentinels(folder: Path, number: int) -> None:
    """Gives a tokenizer the tokens `<extra_id_0>` and so on, with the ids after its last.

    Args:
        folder: of the tokenizer, changed in place.
        number: of sentinels.
    """
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens(
        [AddedToken(f"<extra_id_{i}>", special=True, normalized=False) for i in range(number)], special_tokens=True
    )
    tokenizer.save_pretrained(folder)


def read_result(work: Path) -> dict[str, Any] | None:
    """The numbers of a finished training, or None."""
    path = work / EXPORT_NAME / RESULT_NAME
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result
