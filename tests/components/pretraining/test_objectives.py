"""Objectives against transformers' own losses and by hand; documents that share a sequence do not see each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.pretraining.batches import Batch, attention_mask, make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.evaluation.validation import training_counts, unigram_cross_entropy
from components.pretraining.networks.models import TargetLoss, build_model
from components.pretraining.networks.runner import model_mask
from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.label_lm import LabelLm
from components.pretraining.objectives.masked_lm import MaskedLm
from components.pretraining.objectives.objective import Sequences, Vocabulary
from components.tokenization.shards import TokenShards

VOCABULARY = Vocabulary(size=512, pad=0, bos=2, eos=3, mask=4)
SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
CPU = torch.device("cpu")


NETWORKS = [("masked_lm", "bert"), ("masked_lm", "modernbert"), ("causal_lm", "llama")]


def config(objective: str, architecture: str | None = None, **more: Any) -> PretrainConfig:
    model = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "architecture": architecture}
    return PretrainConfig.model_validate({"objective": objective, "model": model, "sequence_length": 32, **more})


def batch_of(data: Path, objective: str, indices: list[int], **more: Any) -> Batch:
    shards = TokenShards(data / "token_shards", "train")
    made = make_objective(config(objective), shards, data / "tokenizer")
    numbers_B = np.asarray(indices)
    return make_batch(shards, made, numbers_B, np.zeros_like(numbers_B), **more)


@pytest.mark.parametrize(("objective", "architecture"), [*NETWORKS, ("label_lm", "llama")])
def test_the_loss_is_that_of_transformers(marked_data: Path, objective: str, architecture: str) -> None:
    batch = batch_of(marked_data, objective, [0, 5, 9])
    model = build_model(config(objective, architecture), 512, SPECIAL)
    ours = TargetLoss(model)(**batch.to(CPU)).detach()[0] / batch.num_targets_K[0]
    labels_BL = torch.full_like(batch.input_ids_BL, -100).reshape(-1)
    at_T = batch.target_positions_T
    if objective != "masked_lm":  # transformers shifts labels itself
        at_T = at_T + 1
    labels_BL[at_T] = batch.target_ids_T
    labels_BL = labels_BL.reshape(batch.input_ids_BL.shape)
    theirs = model(
        input_ids=batch.input_ids_BL,
        attention_mask=model_mask(model, batch.attention_B1LL),
        position_ids=batch.positions_BL,
        labels=labels_BL,
    ).loss.detach()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_a_network_that_knows_nothing_loses_log_of_the_vocabulary(tiny_data: Path) -> None:
    batch = batch_of(tiny_data, "causal_lm", [1, 2])
    model = build_model(config("causal_lm"), 512, SPECIAL)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert float(TargetLoss(model)(**batch.to(CPU)).detach()) == pytest.approx(
        batch.num_targets_K[0] * math.log(512), rel=1e-6
    )


def test_causal_targets_by_hand() -> None:
    tokens_BL = np.asarray([[2, 10, 3, 2, 11, 12, 3, 0]])
    segments_BL = np.asarray([[1, 1, 1, 2, 2, 2, 2, 0]])
    marks_BL = np.asarray([[0, 0, 0, 0, 0, 1, 1, 0]], dtype=bool)
    sequences = Sequences(
        tokens_BL=tokens_BL,
        segments_BL=segments_BL,
        marked_BL=marks_BL,
        indices_B=np.asarray([0]),
        epochs_B=np.asarray([0]),
    )
    causal = CausalLm(vocabulary=VOCABULARY).prepare(sequences)
    assert causal.mask_BX.astype(int).tolist() == [[1, 1, 0, 1, 1, 1, 0, 0]]
    assert causal.labels_BX[causal.mask_BX].tolist() == [10, 3, 11, 12, 3]
    label = LabelLm(vocabulary=VOCABULARY).prepare(sequences)
    assert label.labels_BX[label.mask_BX].tolist() == [12, 3]
    assert np.flatnonzero(label.mask_BX).tolist() == [4, 5]


def masked(epoch: int = 0, seed: int = 0, validation: bool = False, rows: slice = slice(None)) -> Any:
    generator = np.random.default_rng(0)
    tokens_BL = generator.integers(5, 512, (64, 128))
    tokens_BL[:, 0], tokens_BL[:, 64], tokens_BL[:, 120:] = 2, 3, 0
    segments_BL = (tokens_BL > 0).astype(np.int64)
    indices_B = np.arange(64)
    sequences = Sequences(
        tokens_BL=tokens_BL[rows],
        segments_BL=segments_BL[rows],
        marked_BL=None,
        indices_B=indices_B[rows],
        epochs_B=np.full(64, epoch)[rows],
    )
    return MaskedLm(vocabulary=VOCABULARY, masking_rate=0.3, seed=seed).prepare(sequences, validation=validation)


def test_masks_hide_the_share_that_they_should() -> None:
    found = masked()
    text = (found.labels_BX > 4).sum()
    targets = found.mask_BX.sum()
    assert targets / text == pytest.approx(0.3, abs=0.02)
    assert (found.inputs_BL[found.mask_BX] == 4).sum() / targets == pytest.approx(0.8, abs=0.03)
    changed = found.mask_BX & (found.inputs_BL != 4) & (found.inputs_BL != found.labels_BX)
    assert changed.sum() / targets == pytest.approx(0.1, abs=0.02)
    assert found.labels_BX[found.mask_BX].min() > 4
    assert (found.inputs_BL[~found.mask_BX] == found.labels_BX[~found.mask_BX]).all()
    assert not np.isin(found.inputs_BL[changed], VOCABULARY.special).any()


def test_masks_are_of_the_sequence_and_not_of_the_batch() -> None:
    assert (masked().inputs_BL[20:30] == masked(rows=slice(20, 30)).inputs_BL).all()


def test_masks_change_with_the_epoch_and_the_seed_but_not_in_validation() -> None:
    assert (masked().mask_BX != masked(epoch=1).mask_BX).any()
    assert (masked().mask_BX != masked(seed=1).mask_BX).any()
    assert (masked(validation=True).inputs_BL == masked(validation=True, epoch=3, seed=8).inputs_BL).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("objective", "architecture"), NETWORKS)
def test_a_document_does_not_see_its_neighbours(objective: str, architecture: str, attention: str) -> None:
    """The same document at another place, beside others, gives the same hidden states."""
    model = build_model(config(objective, architecture), 512, SPECIAL).eval()
    model.set_attn_implementation(attention)
    causal = objective == "causal_lm"
    generator = np.random.default_rng(1)
    document, one, other = generator.integers(5, 512, 7), generator.integers(5, 512, 6), generator.integers(5, 512, 9)

    def hidden(parts: list[Any], which: int) -> torch.Tensor:
        tokens_L = np.concatenate([*parts, np.zeros(20 - sum(map(len, parts)), dtype=np.int64)])
        segments_L = np.concatenate([np.full(len(p), n + 1) for n, p in enumerate(parts)])
        segments_L = np.concatenate([segments_L, np.zeros(20 - len(segments_L), dtype=np.int64)])
        positions_L = np.concatenate([*(np.arange(len(p)) for p in parts), np.arange(20 - (segments_L > 0).sum())])
        with torch.no_grad():
            states_BLD = model.base_model(
                input_ids=torch.from_numpy(tokens_L)[None],
                attention_mask=model_mask(model, torch.from_numpy(attention_mask(segments_L[None], causal=causal))),
                position_ids=torch.from_numpy(positions_L)[None],
            ).last_hidden_state
        assert torch.isfinite(states_BLD).all()
        first = sum(len(p) for p in parts[:which])
        return states_BLD[0, first : first + len(parts[which])]

    alone = hidden([document], 0)
    assert torch.allclose(alone, hidden([one, document, other[:5]], 1), atol=1e-6)
    assert torch.allclose(alone, hidden([other, document], 1), atol=1e-6)
    plain = model.base_model(input_ids=torch.from_numpy(document)[None]).last_hidden_state[0]
    assert torch.allclose(alone, plain, atol=1e-6)


def test_a_row_of_the_mask_is_never_empty() -> None:
    mask = attention_mask(np.asarray([[1, 1, 2, 0, 0]]), causal=True)[0, 0]
    assert mask.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_unigram_cross_entropy_by_hand() -> None:
    vocabulary = Vocabulary(size=7, pad=0, bos=2, eos=3, mask=4)
    objective = MaskedLm(vocabulary=vocabulary, masking_rate=0.3)
    # tokens that can be targets: 1, 5, 6; counts + 1 = 1, 4, 3
    found = unigram_cross_entropy(np.asarray([9, 0, 9, 9, 9, 3, 2]), np.asarray([0, 0, 0, 0, 0, 1, 3]), objective)
    assert found == pytest.approx(-(math.log(4 / 8) + 3 * math.log(3 / 8)) / 4)


def test_unigrams_of_marked_shards_count_the_marked_tokens(marked_data: Path) -> None:
    shards = TokenShards(marked_data / "token_shards", "train")
    counts_V = training_counts(shards, make_objective(config("label_lm"), shards, marked_data / "tokenizer"))
    assert counts_V is not None
    assert counts_V.sum() == shards.split.num_target_tokens
    assert counts_V[[0, 2, 4]].sum() == 0
    assert 100 < counts_V[3] < counts_V.sum() / 2


def test_one_seed_gives_one_network() -> None:
    first, again, other = (build_model(config("masked_lm", seed=seed), 512, SPECIAL) for seed in (1, 1, 2))
    name = "model.layers.1.mlp.Wi.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_model_to_start_from_is_loaded(tmp_path: Path) -> None:
    source = build_model(config("causal_lm", seed=4), 512, SPECIAL)
    source.save_pretrained(tmp_path / "decoder")
    start = {"init_from": str(tmp_path / "decoder")}
    loaded = build_model(config("label_lm", model=start), 512, SPECIAL)
    assert torch.equal(loaded.lm_head.weight, source.lm_head.weight)
