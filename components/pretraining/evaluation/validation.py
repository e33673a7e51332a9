"""Validation: cross-entropy, perplexity, bits per byte, by source too, and what the training unigrams would give.

    validation_loss               nats of all validation targets / their number; of masked_lm_nsp the tokens alone, the
                                  pairs are validation_next_sentence_loss, and the training loss is the sum of both
    validation_perplexity         exp(validation_loss), of objectives that predict from the left (decoders)
    validation_pseudo_perplexity  exp(validation_loss), of those that fill in or restore text
    bits_per_byte                 (nats of all targets / targets that are text) / ln 2 / (bytes per text token), where
                                  all text is predicted from the left: causal_lm
    pseudo_bits_per_byte          the same of masked_lm: comparable between tokenizers, as losses per token are not
    unigram_cross_entropy         - mean over the same targets of log((count + 1) / sum(count + 1)), over the tokens
                                  that can be targets: what a model that knows frequencies alone gets

A pseudo-perplexity is no perplexity: its factors are not those of a text's probability. That of Salazar et al. 2020
(arXiv:1910.14659, section 2.3) hides one token at a time and takes as many passes as there are tokens. Ours hides
masking_rate of them at once, once, with fixed masks: a token sees less of its text, which raises it, and some targets
are shown as they are (BERT's 10 %), which lowers it. It compares models trained and judged with the same masks only.

Bits per byte are a code length only if every byte is paid for. So prefix_lm has none (the prefix is given, and seen
from both sides), nor span_corruption and denoising (their input shows most of the text), nor label_lm (only labels).

By source: `validation_loss/<source>` and so on, over the targets of the source's documents in the same pass; sums over
sources are the totals. A pair of masked_lm_nsp is of the source of its first segment. Beyond MAX_SOURCES
the smallest are told together as `other sources`.

Sequences are taken at equal distances over the split, because it is in the order of the sources. The weights are those
of training, in its precision. Batches are made anew each time: 0.06 (causal) to 0.3 ms (masked) a sequence of 128, 1 to
4 % of an evaluation by a network of 5M parameters, so keeping them would gain little.

Shapes: B sequences, L tokens (M of a decoder beside an encoder), T targets, S sources, V vocabulary, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from components.pretraining.batches import Batch, make_batch
from components.pretraining.config import ObjectiveName, PretrainConfig
from components.pretraining.engine.engine import TrainingEngine
from components.pretraining.objectives.objective import Objective
from components.tokenization.shards import TokenShards
from infra.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
UNIGRAM_COUNTS_NAME = "unigram_counts.npy"
CHUNK = 256
MAX_SOURCES = 20
OTHER_SOURCES = "other sources"
"""No source has this name: names have no spaces."""
PERPLEXITIES: dict[ObjectiveName, str] = {
    "causal_lm": "validation_perplexity",
    "prefix_lm": "validation_perplexity",
    "label_lm": "validation_perplexity",
}
"""All others have a pseudo-perplexity."""
BITS: dict[ObjectiveName, str] = {
    "causal_lm": "bits_per_byte",
    "label_lm": "bits_per_byte",  # without marks, where it is causal_lm
    "masked_lm": "pseudo_bits_per_byte",
    "masked_lm_nsp": "pseudo_bits_per_byte",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Sums over the validation targets."""

    objective: ObjectiveName
    nats_S: FloatArray
    num_targets_S: IntArray
    num_text_targets_S: IntArray
    """Targets that are no special token."""
    target_counts_V: IntArray
    """How often each token is a target."""
    next_sentence_loss: float | None = None
    """Nats per pair, where the objective has pairs."""

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.nats_S.sum() / self.num_targets_S.sum())

    def metrics(self, shards: TokenShards) -> dict[str, float]:
        """The metrics above but the unigram's, in total and by source."""
        found = self._of(np.arange(len(self.nats_S)), shards)
        if self.next_sentence_loss is not None:
            found["validation_next_sentence_loss"] = self.next_sentence_loss
        for name, sources in reported_sources(shards):
            if self.num_targets_S[sources].sum():
                found |= {f"{metric}/{name}": value for metric, value in self._of(sources, shards).items()}
        return found

    def _of(self, sources: IntArray, shards: TokenShards) -> dict[str, float]:
        """The metrics over these sources together."""
        nats = float(self.nats_S[sources].sum())
        loss = nats / int(self.num_targets_S[sources].sum())
        perplexity = PERPLEXITIES.get(self.objective, "validation_pseudo_perplexity")
        found = {"validation_loss": loss, perplexity: math.exp(min(loss, 700.0))}
        num_text_targets = int(self.num_text_targets_S[sources].sum())
        counts = [shards.split.by_source[source] for source in sources.tolist()]
        num_tokens, num_bytes = sum(one.num_text_tokens for one in counts), sum(one.num_text_bytes for one in counts)
        is_whole = self.objective in BITS and shards.split.num_target_tokens is None
        if is_whole and num_text_targets and num_bytes:
            found[BITS[self.objective]] = nats / num_text_targets / math.log(2) / (num_bytes / num_tokens)
        return found


def reported_sources(shards: TokenShards) -> Iterator[tuple[str, IntArray]]:
    """Names of what is told by source, and the numbers of its sources: the largest of the split first."""
    sizes_S = np.asarray([counts.num_text_bytes for counts in shards.split.by_source])
    order = np.argsort(-sizes_S, kind="stable")
    for source in order[:MAX_SOURCES].tolist():
        yield shards.index.sources[source], np.asarray([source])
    if len(order) > MAX_SOURCES:
        yield OTHER_SOURCES, order[MAX_SOURCES:]


def validation_indices(num_sequences: int, config: PretrainConfig) -> IntArray:
    """The sequences that are scored: at most `max_validation_sequences`, at equal distances."""
    number = min(num_sequences, config.max_validation_sequences or num_sequences)
    return np.arange(number, dtype=np.int64) * num_sequences // number


def document_numbers(batch: Batch) -> torch.Tensor:
    """Number of the document of each position that has targets, from 0 in each sequence; int64 [B, L] or [B, M].

    A position of a decoder beside an encoder is of the document that it sees there, for a document that lost nothing
    might have no place in the decoder.
    """
    documents_BL = batch.documents_BL
    cross_attention_B1ML: torch.Tensor | None = getattr(batch, "cross_attention_B1ML", None)
    if cross_attention_B1ML is None:
        return documents_BL
    return documents_BL.gather(1, cross_attention_B1ML[:, 0].int().argmax(-1))


def target_sources(batch: Batch, shards: TokenShards, indices_B: IntArray) -> IntArray:
    """Number of the source of each target's document; int64 [T]."""
    documents_BL = document_numbers(batch).numpy()
    flat_T = batch.target_positions_T.numpy()
    named = [shards.document_sources(index) for index in indices_B.tolist()]
    sources_BD = np.full((len(named), max(map(len, named))), -1, dtype=np.int64)  # -1 is counted nowhere: an error
    for row, sources in enumerate(named):
        sources_BD[row, : len(sources)] = sources
    found_T: IntArray = sources_BD[flat_T // documents_BL.shape[1], documents_BL.reshape(-1)[flat_T]]
    return found_T


def validation_batch(
    engine: TrainingEngine,
    shards: TokenShards,
    objective: Objective,
    config: PretrainConfig,
    indices_B: IntArray,
    *,
    scored: bool = True,
) -> Batch:
    """Validation sequences with fixed masks, as the engine's network reads them; the arguments are `make_batch`'s."""
    return make_batch(
        shards,
        objective,
        indices_B,
        np.zeros_like(indices_B),
        validation=True,
        attention_scope=config.attention_scope,
        scored=scored,
        with_mask=engine.reads_masks,
    )


def evaluate(engine: TrainingEngine, shards: TokenShards, objective: Objective, config: PretrainConfig) -> Evaluation:
    """Scores validation sequences. All ranks call it and get the same.

    Raises:
        DataError: the split has no target.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    chosen = validation_indices(len(shards), config)
    batches = np.array_split(
        chosen, range(config.micro_batch_size_per_rank, len(chosen), config.micro_batch_size_per_rank)
    )
    num_sources, vocabulary = len(shards.index.sources), objective.vocabulary
    no_text = np.append(vocabulary.special, vocabulary.sentinels)
    nats_S, pairs = np.zeros(num_sources), np.zeros(2)
    counts_2S = np.zeros((2, num_sources))
    counts_V = np.zeros(objective.vocabulary.num_ids)
    for first in range(0, len(batches), world_size):
        scored = first + rank < len(batches)
        indices_B = batches[first + rank] if scored else batches[0]
        batch = validation_batch(engine, shards, objective, config, indices_B, scored=scored)
        losses = engine.evaluate(batch.to(engine.device), output="losses").double().cpu().numpy()
        ids_T, sources_T = batch.target_ids_T.numpy(), target_sources(batch, shards, indices_B)
        nats_S += np.bincount(sources_T, losses[: len(ids_T)], minlength=num_sources)
        counts_2S[0] += np.bincount(sources_T, minlength=num_sources)
        is_text_T = ~np.isin(ids_T, no_text)
        counts_2S[1] += np.bincount(sources_T[is_text_T], minlength=num_sources)
        counts_V += np.bincount(ids_T, minlength=len(counts_V))
        pairs += [losses[len(ids_T) :].sum(), sum(batch.num_targets_K[1:])]
    parts = [nats_S, counts_2S.reshape(-1), counts_V, pairs]
    together = torch.from_numpy(np.concatenate(parts)).to(engine.device)
    dist.all_reduce(together)
    nats_S, counts, counts_V, pairs = np.split(together.cpu().numpy(), np.cumsum([len(part) for part in parts])[:-1])
    num_targets_S, num_text_targets_S = counts.reshape(2, -1).astype(np.int64)
    if not num_targets_S.sum():
        raise DataError(f"{shards.folder}: its {len(chosen)} validation sequences have no target: add validation text")
    return Evaluation(
        objective=config.objective,
        nats_S=nats_S,
        num_targets_S=num_targets_S,
        num_text_targets_S=num_text_targets_S,
        target_counts_V=counts_V.astype(np.int64),
        next_sentence_loss=float(pairs[0] / pairs[1]) if pairs[1] else None,
    )


def training_counts(shards: TokenShards, objective: Objective) -> IntArray | None:
    """How often each token stands in the training split, among those that can be targets; int64 [V].

    From the marks where the shards have them, else from `unigram_counts.npy`; None without either.
    """
    counts_V = np.zeros(objective.vocabulary.num_ids, dtype=np.int64)
    path = Path(shards.folder) / UNIGRAM_COUNTS_NAME
    if shards.split.num_target_tokens is not None:
        for first in range(0, len(shards), CHUNK):
            indices_B = np.arange(first, min(first + CHUNK, len(shards)), dtype=np.int64)
            marked_T = shards.tokens(indices_B)[shards.targets(indices_B)]
            counts_V += np.bincount(marked_T, minlength=len(counts_V))
    elif path.is_file():
        known_V = np.load(path)
        counts_V[: len(known_V)] += known_V
    else:
        return None
    return counts_V


def unigram_cross_entropy(training_counts_V: IntArray, target_counts_V: IntArray, objective: Objective) -> float:
    """Nats per target of the add-one smoothed training unigrams.

    Args:
        training_counts_V: of the training split.
        target_counts_V: of the validation targets.
        objective: says which tokens can be targets.
    """
    possible_V = objective.targetable(np.arange(len(training_counts_V))[None, :])[0]
    smoothed_V = np.where(possible_V, training_counts_V + 1.0, 0.0)
    log_probability_V = np.log(np.maximum(smoothed_V, 1e-300) / smoothed_V.sum())
    return float(-(target_counts_V * log_probability_V).sum() / target_counts_V.sum())
