"""Greedy samples of what a model makes of held-out text, as rows of a table.

    decoder           the first half of a document is continued (label_lm: what stands before the first mark)
    encoder           a document with the validation masks is filled in
    encoder-decoder   a document corrupted as in validation is restored

Each token is the likeliest (`generate(do_sample=False)` of transformers), so that a table is a function of the weights.
Text is shown with its special tokens, at most `sample_tokens` of a kind.

All ranks compute the same rows in one batch, because stage 3 gathers weights in every forward pass; rank 0's tokens
count, lest ranks that round differently stop at different lengths. There is no cache of keys and values: the network
is called as in validation, at any stage, and 4 rows of 32 new tokens took as long as one training step of 1,024 tokens
(filling in: a fifth of it). Long texts would be a waste this way.

Shapes: B rows, L tokens, M decoder tokens, T targets.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from components.pretraining.batches import Batch
from components.pretraining.config import Kind, PretrainConfig
from components.pretraining.engine.engine import TrainingEngine
from components.pretraining.evaluation.validation import document_numbers, validation_batch, validation_indices
from components.pretraining.export import SAMPLES_NAME
from components.pretraining.objectives.objective import Objective, Vocabulary
from components.pretraining.training import Training
from components.tokenization.shards import TokenShards

COLUMNS: dict[Kind, tuple[str, str, str]] = {
    "decoder": ("prompt", "continuation", "reference"),
    "encoder": ("masked_text", "filled_in_text", "true_text"),
    "encoder_decoder": ("corrupted_text", "restored_text", "target"),
}
SAMPLES = "samples"
"""The rows of a table stand under this name in the history of a training, and so in its checkpoints."""
MIN_DOCUMENT_TOKENS = 6
MAX_SCANNED_SEQUENCES = 256
CANDIDATES = 4
"""Documents looked at for each row of an encoder's: some have no token hidden."""
Ids = list[int]
Row = Mapping[str, Any]


def take_samples(training: Training) -> None:
    """Adds the rows of this step to the history, and sends the table as it is now. All ranks call it."""
    job, config, state = training.job, training.config, training.state
    if not config.num_samples or any(SAMPLES in row and row["step"] == state.step for row in state.history):
        return
    started = time.monotonic()
    found = make_samples(training.engine, training.validation, training.objective, config)
    names = training.validation.index.sources
    text = _decoder(job.tokenizer, training.objective.vocabulary)
    rows = [[state.step, names[source], *map(text, texts)] for source, texts in found]
    state.history.append({"step": state.step, SAMPLES: rows})
    state.evaluation_seconds += time.monotonic() - started
    if dist.get_rank() == 0:
        job.tracker.log_table(SAMPLES_NAME, table(config, state.history))


def table(config: PretrainConfig, history: Sequence[Row]) -> dict[str, list[Any]]:
    """All rows so far as MLflow's tables are: `{"columns": [...], "data": [[...], ...]}`."""
    rows = [row for point in history for row in point.get(SAMPLES, ())]
    return {"columns": ["step", "source", *COLUMNS[config.kind]], "data": rows}


def without_samples(history: Sequence[Row]) -> list[Row]:
    """The metrics of a history."""
    return [point for point in history if SAMPLES not in point]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A held-out document."""

    sequence: int
    number: int
    """Which document of the sequence, from 0."""
    start: int
    """Its first token in the sequence."""
    length: int
    source: int


def choose(shards: TokenShards, config: PretrainConfig, wanted: int) -> list[Place]:
    """`wanted` documents of validation sequences, the sources in turn; fewer only if there are fewer."""
    by_source: list[list[Place]] = [[] for _ in shards.index.sources]
    indices = validation_indices(len(shards), config)
    for sequence in indices[:: -(-len(indices) // MAX_SCANNED_SEQUENCES)].tolist():
        start = 0
        described = zip(shards.document_lengths(sequence), shards.document_sources(sequence), strict=True)
        for number, (length, source) in enumerate(described):
            if length >= MIN_DOCUMENT_TOKENS:
                place = Place(sequence=sequence, number=number, start=start, length=length, source=source)
                by_source[source].append(place)
            start += length
    turns = (places[turn] for turn in range(wanted) for places in by_source if turn < len(places))
    return list(itertools.islice(turns, wanted))


def make_samples(
    engine: TrainingEngine, shards: TokenShards, objective: Objective, config: PretrainConfig
) -> list[tuple[int, list[Ids]]]:
    """Source and token ids of the three texts of each row. All ranks call it and get the same."""
    places = choose(shards, config, config.num_samples * (CANDIDATES if config.kind == "encoder" else 1))
    if not places:
        return []
    indices_B = np.asarray([place.sequence for place in places])
    if config.kind == "decoder":
        texts = _continued(engine, shards, objective, config, places)
    else:
        batch = validation_batch(engine, shards, objective, config, indices_B)
        if config.kind == "encoder":
            places, texts = _filled_in(engine, batch, places, config.num_samples)
        else:
            texts = _restored(engine, batch, objective, config, places)
    kept = config.sample_tokens
    return [(place.source, [ids[:kept] for ids in three]) for place, three in zip(places, texts, strict=True)]


def _decoder(tokenizer: Path, vocabulary: Vocabulary) -> Callable[[Ids], str]:
    """What gives the text of token ids, special tokens and sentinels included; padding of the vocabulary as numbers."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def other(id_: int) -> str:
        sentinel = id_ - vocabulary.size
        return f"<extra_id_{sentinel}>" if 0 <= sentinel < vocabulary.num_sentinels else f"<[{id_}]>"

    def decode(ids: Ids) -> str:
        runs = itertools.groupby(ids, lambda id_: known.id_to_token(id_) is not None)
        texts = (
            known.decode(list(run), skip_special_tokens=False) if is_known else "".join(map(other, run))
            for is_known, run in runs
        )
        return "".join(texts)

    return decode


def _predict(engine: TrainingEngine, inputs: dict[str, torch.Tensor]) -> list[int]:
    """Rank 0's likeliest token at each target."""
    on_device = {name: value.to(engine.device) for name, value in inputs.items()}
    predictions_T = engine.evaluate(on_device, output="predictions")
    dist.broadcast(predictions_T, 0)
    found: list[int] = predictions_T.tolist()
    return found


def _greedy(
    engine: TrainingEngine,
    starts: Sequence[Ids],
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    *,
    end: int,
    num_new: int,
    longest: int,
) -> list[Ids]:
    """Continues each start until `end`, `num_new` tokens or `longest` in all; gives the new tokens alone.

    Args:
        engine: the network.
        starts: tokens of each row.
        inputs: what the network takes beside the targets, from the rows [B, L], filled up with `end`.
        end: the token that ends a row.
        num_new: most new tokens of a row.
        longest: most tokens of a row.
    """
    rows = [list(start) for start in starts]
    has_ended = [len(row) >= longest for row in rows]
    for _ in range(num_new):
        if all(has_ended):
            break
        length = max(map(len, rows))
        rows_BL = torch.tensor([row + [end] * (length - len(row)) for row in rows])
        last_B = torch.tensor([at * length + len(row) - 1 for at, row in enumerate(rows)])
        targets = {"target_positions_T": last_B, "target_ids_T": torch.zeros_like(last_B)}
        for at, token in enumerate(_predict(engine, inputs(rows_BL) | targets)):
            if not has_ended[at]:
                rows[at].append(token)
                has_ended[at] = token == end or len(rows[at]) >= longest
    return [row[len(start) :] for row, start in zip(rows, starts, strict=True)]


def _causal(rows_BL: torch.Tensor, prefix_lengths: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [B, L] and mask [B, 1, L, L] of rows that are one document each; a prefix sees itself whole."""
    number, length = rows_BL.shape
    mask_B1LL = torch.ones(length, length, dtype=torch.bool).tril().repeat(number, 1, 1, 1)
    for row, prefix in enumerate(prefix_lengths):
        mask_B1LL[row, :, :prefix, :prefix] = True
    return torch.arange(length).repeat(number, 1), mask_B1LL


def _continued(
    engine: TrainingEngine, shards: TokenShards, objective: Objective, config: PretrainConfig, places: Sequence[Place]
) -> list[tuple[Ids, Ids, Ids]]:
    prompts: list[Ids] = []
    references: list[Ids] = []
    for place in places:
        index = np.asarray([place.sequence])
        span = slice(place.start, place.start + place.length)
        tokens, cut = shards.tokens(index)[0, span].tolist(), min(place.length // 2, config.sample_tokens)
        if shards.split.num_target_tokens is not None:
            marked = np.flatnonzero(shards.targets(index)[0, span])
            cut = int(marked[0]) if len(marked) and marked[0] else cut
        prompts.append(tokens[:cut])
        references.append(tokens[cut:])
    prefix_lengths = [len(prompt) for prompt in prompts] if config.objective == "prefix_lm" else ()

    def inputs(rows_BL: torch.Tensor) -> dict[str, torch.Tensor]:
        positions_BL, mask_B1LL = _causal(rows_BL, prefix_lengths)
        return {"input_ids_BL": rows_BL, "positions_BL": positions_BL, "attention_B1LL": mask_B1LL}

    end, most = objective.vocabulary.eos, config.sample_tokens
    found = _greedy(engine, prompts, inputs, end=end, num_new=most, longest=config.sequence_length)
    ends = [prompt[-most:] for prompt in prompts]
    return list(zip(ends, found, references, strict=True))


def _filled_in(
    engine: TrainingEngine, batch: Batch, places: Sequence[Place], number: int
) -> tuple[list[Place], list[tuple[Ids, Ids, Ids]]]:
    """The first `number` places where something is to be predicted, and their texts."""
    predictions = torch.tensor(_predict(engine, batch.to(torch.device("cpu"))), dtype=torch.int64)
    masked_BL, documents_BL = batch.input_ids_BL, document_numbers(batch)
    texts_BL = [masked_BL, masked_BL.clone(), masked_BL.clone()]
    for text_BL, ids_T in zip(texts_BL[1:], (predictions, batch.target_ids_T), strict=True):
        text_BL.view(-1)[batch.target_positions_T] = ids_T
    places_BL = documents_BL == torch.tensor([place.number for place in places])[:, None]
    targets_BL = torch.zeros_like(places_BL)
    targets_BL.view(-1)[batch.target_positions_T] = True
    rows = [row for row in range(len(places)) if (places_BL & targets_BL)[row].any()][:number]
    masked, filled_in, true = ([text_BL[row][places_BL[row]].tolist() for row in rows] for text_BL in texts_BL)
    return [places[row] for row in rows], list(zip(masked, filled_in, true, strict=True))


def _restored(
    engine: TrainingEngine, batch: Any, objective: Objective, config: PretrainConfig, places: Sequence[Place]
) -> list[tuple[Ids, Ids, Ids]]:
    """Each document alone, cut out of the batch: its encoder tokens, its first decoder token, its targets."""
    number, width = len(places), batch.decoder_input_ids_BM.shape[1]
    documents_BL, documents_BM = batch.documents_BL, document_numbers(batch)
    row_T, column_T = batch.target_positions_T // width, batch.target_positions_T % width
    corrupted, starts, targets = [], [], []
    for row, place in enumerate(places):
        corrupted.append(batch.input_ids_BL[row][documents_BL[row] == place.number])
        mine_T = (row_T == row) & (documents_BM[row_T, column_T] == place.number)
        starts.append(batch.decoder_input_ids_BM[row, column_T[mine_T][:1]].tolist())
        targets.append(batch.target_ids_T[mine_T].tolist())
    lengths = [len(ids) for ids in corrupted]
    input_ids_BL = torch.nn.utils.rnn.pad_sequence(corrupted, batch_first=True, padding_value=objective.vocabulary.pad)
    length = input_ids_BL.shape[1]
    visible_BL = torch.arange(length) < torch.tensor(lengths)[:, None]
    attention_B1LL = visible_BL[:, None, None, :] | torch.eye(length, dtype=torch.bool)

    def inputs(rows_BM: torch.Tensor) -> dict[str, torch.Tensor]:
        positions_BM, mask_B1MM = _causal(rows_BM)
        return {
            "input_ids_BL": input_ids_BL,
            "positions_BL": torch.arange(length).repeat(number, 1),
            "attention_B1LL": attention_B1LL,
            "decoder_input_ids_BM": rows_BM,
            "decoder_positions_BM": positions_BM,
            "decoder_attention_B1MM": mask_B1MM,
            "cross_attention_B1ML": visible_BL[:, None, None, :].expand(number, 1, rows_BM.shape[1], length),
        }

    end = objective.vocabulary.eos
    found = _greedy(engine, starts, inputs, end=end, num_new=config.sample_tokens, longest=width)
    return list(zip([ids.tolist() for ids in corrupted], found, targets, strict=True))
