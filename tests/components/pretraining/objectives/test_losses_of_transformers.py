"""Losses of packed batches against transformers' own, document by document.

Their side is what a user of transformers would do: each document in a row of its own, padded, labels -100 where there
is no target, `.loss`. Ours has several documents in a row, kept apart by masks and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from components.pretraining.batches import Batch, attention_mask, make_batch, make_objective, read_sequences
from components.pretraining.config import PretrainConfig, network_vocab_size
from components.pretraining.models import TargetLoss, build_model
from components.pretraining.objectives.masked_lm_nsp import MaskedLmNsp
from components.pretraining.objectives.objective import Sequences, Targets
from components.tokenization.shards import TokenShards

CPU = torch.device("cpu")
SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
INDICES = np.asarray([0, 5, 9, 14, 20, 31, 40, 52])
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """For all tests here."""
    with torch.no_grad():
        yield


def config_of(objective: str, **more: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"objective": objective, "sequence_length": 32, "model": SIZES, **more})


def made(data: Path, config: PretrainConfig) -> tuple[Batch, Targets]:
    """A batch, and what its objective says of the same sequences."""
    shards = TokenShards(data / "token_shards", "train")
    objective = make_objective(config, shards, data / "tokenizer")
    epochs_B = np.zeros_like(INDICES)
    sequences: Sequences = read_sequences(shards, INDICES, epochs_B)
    if isinstance(objective, MaskedLmNsp):
        partners_B = objective.partner_indices(sequences, len(shards), validation=False)
        partners = read_sequences(shards, partners_B, epochs_B)  # type: ignore[arg-type]
        sequences = Sequences(
            tokens_BL=sequences.tokens_BL,
            segments_BL=sequences.segments_BL,
            marked_BL=None,
            indices_B=INDICES,
            epochs_B=epochs_B,
            partners=partners,
        )
    return make_batch(shards, objective, INDICES, epochs_B), objective.prepare(sequences)


def one_by_one(segments_BX: Any, *arrays_BX: Any, fills: tuple[int, ...]) -> list[torch.Tensor]:
    """Each document of packed arrays in a row of its own, padded."""
    found: list[list[Any]] = [[] for _ in arrays_BX]
    for row, segments_X in enumerate(segments_BX):
        for number in range(1, int(segments_X.max()) + 1):
            for place, array_BX in enumerate(arrays_BX):
                found[place].append(torch.from_numpy(array_BX[row][segments_X == number]))
    pad = nn.utils.rnn.pad_sequence
    return [pad(rows, batch_first=True, padding_value=fill) for rows, fill in zip(found, fills, strict=True)]


def added(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask as what eager attention adds to its scores."""
    return torch.where(mask, 0.0, -1e4)


def summed(logits_XV: torch.Tensor, batch: Batch) -> torch.Tensor:
    logits_TV = logits_XV.reshape(-1, logits_XV.shape[-1])[batch.target_positions_T]
    return nn.functional.cross_entropy(logits_TV, batch.target_ids_T, reduction="sum")


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_masked_lm(tiny_data: Path, architecture: str, unit: str) -> None:
    config = config_of("masked_lm", masking_unit=unit, model={**SIZES, "architecture": architecture})
    batch, targets = made(tiny_data, config)
    model = build_model(config, 512, SPECIAL).eval()
    labels_BL = np.where(targets.mask_BX, targets.labels_BX, -100)
    ids, labels, real = one_by_one(
        targets.segments_BL, targets.inputs_BL, labels_BL, np.ones_like(labels_BL), fills=(0, -100, 0)
    )
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    assert len(ids) > len(INDICES)  # some share a row
    ours = TargetLoss(model)(**batch.to(CPU))[0] / batch.num_targets_K[0]
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_masked_lm_and_next_sentences(text_data: Path) -> None:
    from transformers.models.bert import BertConfig, BertForPreTraining

    config = config_of("masked_lm_nsp", sequence_length=128)
    batch, targets = made(text_data, config)
    torch.manual_seed(0)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=1024,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            attn_implementation="eager",
        )
    ).eval()
    labels_BL = np.where(targets.mask_BX, targets.labels_BX, -100)
    next_BL = np.full_like(labels_BL, -100)
    assert targets.pair_positions_P is not None
    next_BL.reshape(-1)[targets.pair_positions_P] = targets.pair_labels_P
    ids, labels, real, types, following = one_by_one(
        targets.segments_BL,
        targets.inputs_BL,
        labels_BL,
        np.ones_like(labels_BL),
        targets.token_types_BL,
        next_BL,
        fills=(0, -100, 0, 0, -100),
    )
    theirs = model(
        input_ids=ids, attention_mask=real, token_type_ids=types, labels=labels, next_sentence_label=following[:, 0]
    ).loss
    told = batch.to(CPU)
    hidden_BLD = model.bert(
        input_ids=told["input_ids_BL"],
        position_ids=told["positions_BL"],
        attention_mask=added(told["attention_B1LL"]),
        token_type_ids=told["token_types_BL"],
    ).last_hidden_state
    first_PD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[told["pair_positions_P"]]
    pooled_PD = model.bert.pooler(first_PD[:, None])
    pair_loss = nn.functional.cross_entropy(
        model.cls.seq_relationship(pooled_PD), told["pair_labels_P"], reduction="sum"
    )
    losses_K = torch.stack([summed(model.cls.predictions(hidden_BLD), batch), pair_loss])
    ours = (losses_K / torch.tensor(batch.num_targets_K)).sum()
    assert batch.num_targets_K[1] > 3
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def causal_logits(architecture: str, config: PretrainConfig) -> tuple[Any, Callable[[Batch], torch.Tensor]]:
    """A decoder, and its summed loss on a packed batch."""
    if architecture == "llama":
        model = build_model(config, 512, SPECIAL).eval()
        return model, lambda batch: TargetLoss(model)(**batch.to(CPU))[0]
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_positions=32, n_embd=32, n_layer=2, n_head=2, attn_implementation="eager")
    ).eval()

    def loss(batch: Batch) -> torch.Tensor:
        logits_BLV = gpt2(
            input_ids=batch.input_ids_BL,
            position_ids=batch.positions_BL,
            attention_mask=added(batch.attention_B1LL),
            use_cache=False,
        ).logits
        return summed(logits_BLV, batch)

    return gpt2, loss


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_causal_lm(tiny_data: Path, architecture: str) -> None:
    config = config_of("causal_lm")
    batch, targets = made(tiny_data, config)
    model, loss = causal_logits(architecture, config)
    ids, real = one_by_one(targets.segments_BL, targets.inputs_BL, np.ones_like(targets.inputs_BL), fills=(0, 0))
    labels = torch.where(real.bool(), ids, -100)  # transformers shifts them
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    assert float(loss(batch) / batch.num_targets_K[0]) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prefix_lm(tiny_data: Path, architecture: str) -> None:
    """Transformers is given the mask of each document alone."""
    config = config_of("prefix_lm")
    batch, targets = made(tiny_data, config)
    model, loss = causal_logits(architecture, config)
    assert targets.prefix_BL is not None
    ids, real, prefix = one_by_one(
        targets.segments_BL,
        targets.inputs_BL,
        np.ones_like(targets.inputs_BL),
        targets.prefix_BL.astype(np.int64),
        fills=(0, 0, 0),
    )
    seen = attention_mask(real.numpy(), causal=True, prefix_BL=prefix.bool().numpy())
    labels = torch.where(real.bool() & ~prefix.bool(), ids, -100)
    theirs = model(input_ids=ids, attention_mask=added(torch.from_numpy(seen)), labels=labels).loss
    assert float(loss(batch) / batch.num_targets_K[0]) == pytest.approx(float(theirs), rel=1e-5)


def decoder_rows(targets: Targets) -> list[torch.Tensor]:
    """What a user of an encoder-decoder of transformers gives: input ids, attention mask, labels."""
    assert targets.decoder is not None
    ids, real = one_by_one(targets.segments_BL, targets.inputs_BL, np.ones_like(targets.inputs_BL), fills=(0, 0))
    (labels,) = one_by_one(targets.decoder.segments_BM, targets.labels_BX, fills=(-100,))
    return [ids, real, labels]


@pytest.mark.parametrize("tied", [True, False])
def test_span_corruption_with_t5(text_data: Path, tied: bool) -> None:
    from transformers.models.t5 import T5Config, T5ForConditionalGeneration

    config = config_of("span_corruption", sequence_length=128)
    batch, targets = made(text_data, config)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=network_vocab_size(config, 1024),
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
            tie_word_embeddings=tied,
        )
    ).eval()
    ids, real, labels = decoder_rows(targets)
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    told = batch.to(CPU)
    encoded = model.encoder(input_ids=told["input_ids_BL"], attention_mask=added(told["attention_B1LL"]))
    hidden_BMD = model.decoder(
        input_ids=told["decoder_input_ids_BM"],
        attention_mask=added(told["decoder_attention_B1MM"]),
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=added(told["cross_attention_B1ML"]),
        use_cache=False,
    ).last_hidden_state
    logits_BMV = model.lm_head(hidden_BMD * 32**-0.5 if tied else hidden_BMD)
    assert float(summed(logits_BMV, batch) / batch.num_targets_K[0]) == pytest.approx(float(theirs), rel=1e-5)


def test_denoising_with_bart(text_data: Path) -> None:
    from transformers.models.bart import BartConfig, BartForConditionalGeneration

    config = config_of("denoising", sequence_length=128)
    batch, targets = made(text_data, config)
    torch.manual_seed(0)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=1024,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=3,
            attn_implementation="eager",
        )
    ).eval()
    ids, real, labels = decoder_rows(targets)
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    told = batch.to(CPU)

    def embedded(side: Any, ids_BX: torch.Tensor, positions_BX: torch.Tensor) -> torch.Tensor:
        """With the positions of documents: BART adds those of rows, so the difference is added before."""
        rows_X = side.embed_positions.weight[torch.arange(ids_BX.shape[1]) + 2]
        vectors: torch.Tensor = side.embed_tokens(ids_BX) + side.embed_positions.weight[positions_BX + 2] - rows_X
        return vectors

    encoder, decoder = model.model.encoder, model.model.decoder
    encoded = encoder(
        inputs_embeds=embedded(encoder, told["input_ids_BL"], told["positions_BL"]),
        attention_mask=added(told["attention_B1LL"]),
    )
    hidden_BMD = decoder(
        inputs_embeds=embedded(decoder, told["decoder_input_ids_BM"], told["decoder_positions_BM"]),
        attention_mask=added(told["decoder_attention_B1MM"]),
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=added(told["cross_attention_B1ML"]),
        use_cache=False,
    ).last_hidden_state
    logits_BMV = model.lm_head(hidden_BMD) + model.final_logits_bias
    assert float(summed(logits_BMV, batch) / batch.num_targets_K[0]) == pytest.approx(float(theirs), rel=1e-5)
