"""Training prompts as packed token sequences whose targets are the label tokens only.

An example is `<s> prompt label </s>`, at most one sequence long (a longer text loses its end, counted). The end token
is a target only where scoring uses it (encoding.py). Examples are packed whole, several to a sequence.

Shapes: N sequences, L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from components.prompting.demonstrations import Rows
from components.prompting.encoding import PromptEncoder
from components.tokenization.packing import Ragged, fill, pack
from components.tokenization.shards import BoolArray, IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedExamples:
    """Sequences of one split and their counts."""

    tokens_NL: IntArray
    targets_NL: BoolArray
    document_lengths: Ragged
    num_examples: int
    num_tokens: int
    num_text_tokens: int
    num_text_bytes: int
    num_target_tokens: int
    num_texts_cut: int


def pack_examples(
    encoder: PromptEncoder, rows: Rows, labels: Sequence[str], sequence_length: int, tokenizer: Any, seed: int
) -> PackedExamples:
    """Renders `rows` in a seeded order and packs them.

    Args:
        encoder: of the prompt without demonstrations, with room for one token less than `sequence_length`.
        rows: examples.
        labels: the task's labels.
        sequence_length: L.
        tokenizer: for its special tokens.
        seed: of the order.
    """
    rows = rows.take(np.random.default_rng([seed, 4]).permutation(len(rows)).tolist())
    prompts = encoder.encode(rows.texts)
    numbers = {label: index for index, label in enumerate(labels)}
    end = [] if encoder.scores_end else [int(tokenizer.eos_token_id)]
    label_ids = [encoder.label_ids[numbers[label]] for label in rows.labels]
    examples = [[*prompt.ids, *ids, *end] for prompt, ids in zip(prompts, label_ids, strict=True)]
    marks = [
        [False] * len(prompt.ids) + [True] * len(ids) + [False] * len(end)
        for prompt, ids in zip(prompts, label_ids, strict=True)
    ]
    lengths = np.array([len(example) for example in examples], dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    packing = pack(lengths, sequence_length)
    flat = np.fromiter(chain.from_iterable(examples), dtype=np.int64)
    flat_marks = np.fromiter(chain.from_iterable(marks), dtype=np.int64)
    tokens_NL = fill(packing, flat, offsets, sequence_length, int(tokenizer.pad_token_id))
    targets_NL = fill(packing, flat_marks, offsets, sequence_length, 0).astype(np.bool_)
    num_special = len(rows) * (len(encoder.bos_ids) + 1)
    continuations = [encoder.spec.template.continuation(phrase) for phrase in encoder.spec.phrases]
    return PackedExamples(
        tokens_NL=tokens_NL.astype(np.int64),
        targets_NL=targets_NL,
        document_lengths=packing.by_sequence(packing.length_P),
        num_examples=len(rows),
        num_tokens=len(flat),
        num_text_tokens=len(flat) - num_special,
        num_text_bytes=sum(
            len((prompt.context + continuations[numbers[label]]).encode())
            for prompt, label in zip(prompts, rows.labels, strict=True)
        ),
        num_target_tokens=int(targets_NL.sum()),
        num_texts_cut=sum(prompt.was_cut for prompt in prompts),
    )
