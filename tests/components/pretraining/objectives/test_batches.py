"""What holds for the batches of every objective: they depend on no split of the work, and keep documents apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.pretraining.batches import Batch, cross_attention_mask, make_batch, make_objective, positions
from components.pretraining.config import PretrainConfig, network_vocab_size
from components.pretraining.objectives.span_corruption import SpanCorruption
from components.pretraining.sampler import Sampler
from components.tokenization.shards import TokenShards

OBJECTIVES: list[tuple[str, dict[str, Any]]] = [
    ("masked_lm", {}),
    ("masked_lm", {"masking_unit": "word"}),
    ("masked_lm", {"masking_unit": "span"}),
    ("masked_lm_nsp", {}),
    ("span_corruption", {}),
    ("denoising", {}),
    ("denoising", {"noise": ["token_masking", "token_deletion", "text_infilling", "document_rotation"]}),
    ("causal_lm", {}),
    ("prefix_lm", {}),
]
ENCODER_DECODERS = [(name, more) for name, more in OBJECTIVES if name in ("span_corruption", "denoising")]


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """Each sequence of a batch by itself, without padding."""
    decoder = batch.decoder_input_ids_BM
    width = batch.input_ids_BL.shape[1] if decoder is None else decoder.shape[1]
    found = []
    for row in range(len(batch.input_ids_BL)):
        here = batch.target_positions_T // width == row
        one: dict[str, Any] = {
            "ids": np.trim_zeros(batch.input_ids_BL[row].numpy(), "b").tolist(),
            "targets": (batch.target_positions_T[here] % width).tolist(),
            "labels": batch.target_ids_T[here].tolist(),
        }
        if decoder is not None:
            one["decoder"] = np.trim_zeros(decoder[row].numpy(), "b").tolist()
        if batch.pair_positions_P is not None and batch.pair_labels_P is not None:
            mine = batch.pair_positions_P // width == row
            one["pairs"] = (batch.pair_positions_P[mine] % width).tolist(), batch.pair_labels_P[mine].tolist()
        if batch.token_types_BL is not None:
            one["types"] = batch.token_types_BL[row].tolist()
        found.append(one)
    return found


@pytest.mark.parametrize(("objective", "more"), OBJECTIVES)
def test_ranks_and_micro_batches_change_nothing(text_data: Path, objective: str, more: dict[str, Any]) -> None:
    """A global batch of 12 in the second epoch, on 1, 2, 3 and 4 ranks and in micro batches of 1 to 12."""
    config = PretrainConfig.model_validate({"objective": objective, "sequence_length": 128, **more})
    shards = TokenShards(text_data / "token_shards", "train")
    made = make_objective(config, shards, text_data / "tokenizer")
    sampler = Sampler(num_sequences=len(shards), global_batch_size=12, seed=0)
    indices_G, epochs_G = sampler.global_batch(len(shards) // 12)  # some are of the first epoch, some of the second
    assert set(epochs_G.tolist()) == {0, 1}
    whole = rows_of(make_batch(shards, made, indices_G, epochs_G))
    for size in (1, 2, 3, 6):
        parts = [
            make_batch(shards, made, indices_G[at : at + size], epochs_G[at : at + size]) for at in range(0, 12, size)
        ]
        assert [row for part in parts for row in rows_of(part)] == whole


@pytest.mark.parametrize(("objective", "more"), OBJECTIVES)
def test_epoch_and_seed_change_it_but_not_in_validation(
    text_batch: Callable[..., Batch], objective: str, more: dict[str, Any]
) -> None:
    def same(one: Batch, other: Batch) -> bool:
        return rows_of(one) == rows_of(other)

    first = text_batch(objective, range(8), **more)
    assert same(first, text_batch(objective, range(8), **more))
    if objective != "causal_lm":
        assert not same(first, text_batch(objective, range(8), epoch=1, **more))
        assert not same(first, text_batch(objective, range(8), seed=1, **more))
    judged = text_batch(objective, range(8), validation=True, **more)
    assert same(judged, text_batch(objective, range(8), epoch=1, seed=5, validation=True, **more))


def document_numbers(positions_BX: Any) -> Any:
    """A number for each document: positions begin again at 0."""
    return np.cumsum(positions_BX == 0, axis=1)


@pytest.mark.parametrize(("objective", "more"), OBJECTIVES)
def test_attention_stays_within_a_document(
    text_batch: Callable[..., Batch], objective: str, more: dict[str, Any]
) -> None:
    batch = text_batch(objective, range(16), **more)
    number = document_numbers(batch.positions_BL.numpy())
    seen = batch.attention_B1LL.numpy()[:, 0]
    assert seen.any(axis=2).all()  # no row is empty
    assert not (seen & (number[:, :, None] != number[:, None, :])).any()
    if objective in ("causal_lm", "prefix_lm"):
        later = np.triu(np.ones(seen.shape[1:], dtype=bool), 1)
        assert (seen & later).any() == (objective == "prefix_lm")


@pytest.mark.parametrize(("objective", "more"), ENCODER_DECODERS)
def test_a_decoder_sees_its_own_document(
    text_batch: Callable[..., Batch], objective: str, more: dict[str, Any]
) -> None:
    batch = text_batch(objective, range(16), **more)
    assert batch.decoder_positions_BM is not None and batch.decoder_input_ids_BM is not None
    assert batch.decoder_attention_B1MM is not None and batch.cross_attention_B1ML is not None
    start = 0 if objective == "span_corruption" else 3
    number = document_numbers(batch.positions_BL.numpy())
    decoder_number = document_numbers(batch.decoder_positions_BM.numpy())
    real = np.zeros(decoder_number.shape, dtype=bool)
    real.reshape(-1)[batch.target_positions_T] = True
    starts = (batch.decoder_positions_BM.numpy() == 0) & real
    assert (batch.decoder_input_ids_BM.numpy()[starts] == start).all()
    cross = batch.cross_attention_B1ML.numpy()[:, 0]
    assert cross.any(axis=2).all()
    apart = decoder_number[:, :, None] != number[:, None, :]
    assert not (cross & apart)[real].any()
    assert (cross | apart)[real].all()  # and all of it
    own = batch.decoder_attention_B1MM.numpy()[:, 0]
    assert not np.triu(own, 1).any()
    assert not (own & (decoder_number[:, :, None] != decoder_number[:, None, :])).any()


def test_masks_between_encoder_and_decoder_by_hand() -> None:
    found = cross_attention_mask(np.asarray([[1, 1, 2, 0]]), np.asarray([[1, 2, 2, 0]]))[0, 0]
    assert found.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]


def test_positions_begin_again_in_each_document(text_data: Path) -> None:
    assert positions(np.asarray([[1, 1, 2, 2, 2, 0, 0]])).tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    shards = TokenShards(text_data / "token_shards", "train")
    indices_B = np.arange(50)
    assert (positions(shards.segments(indices_B)) == shards.positions(indices_B)).all()


@pytest.mark.parametrize(("objective", "more"), OBJECTIVES)
def test_a_batch_without_scores_has_the_shape_but_no_target(
    text_data: Path, objective: str, more: dict[str, Any]
) -> None:
    config = PretrainConfig.model_validate({"objective": objective, "sequence_length": 128, **more})
    shards = TokenShards(text_data / "token_shards", "train")
    made = make_objective(config, shards, text_data / "tokenizer")
    indices_B = np.arange(4)
    batch = make_batch(shards, made, indices_B, np.zeros_like(indices_B), scored=False)
    assert set(batch.num_targets_K) == {0}
    assert len(batch.num_targets_K) == (2 if objective == "masked_lm_nsp" else 1)


def test_dropout_keys_are_of_the_sample(text_data: Path) -> None:
    config = PretrainConfig.model_validate({"objective": "causal_lm", "sequence_length": 128})
    shards = TokenShards(text_data / "token_shards", "train")
    made = make_objective(config, shards, text_data / "tokenizer")

    def keys(indices: list[int], epoch: int, seed: int | None) -> Any:
        numbers_B = np.asarray(indices)
        batch = make_batch(shards, made, numbers_B, np.full_like(numbers_B, epoch), dropout_seed=seed)
        return batch.to(batch.input_ids_BL.device).get("sample_keys_B")

    assert keys([3, 4], 0, None) is None
    found = keys([3, 4, 5], 0, 7)
    assert len(set(found.tolist())) == 3
    assert keys([5], 0, 7).tolist() == found[2:].tolist()
    assert keys([5], 1, 7).tolist() != found[2:].tolist()
    assert keys([5], 0, 8).tolist() != found[2:].tolist()


def test_sentinels_come_after_the_tokenizer(text_data: Path) -> None:
    config = PretrainConfig.model_validate({"objective": "span_corruption"})
    shards = TokenShards(text_data / "token_shards", "train")
    made = make_objective(config, shards, text_data / "tokenizer")
    assert isinstance(made, SpanCorruption)
    assert made.vocabulary.num_ids == 1124
    assert network_vocab_size(config, 1024) == 1152  # the next multiple of 64
    assert network_vocab_size(PretrainConfig(), 1024) == 1024
    assert network_vocab_size(PretrainConfig(), 1025) == 1088
