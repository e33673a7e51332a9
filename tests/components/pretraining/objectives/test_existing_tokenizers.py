"""Every objective works on token shards of an existing tokenizer, whose special tokens have other ids than ours."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.pretraining.batches import make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.export import add_sentinels
from components.tokenization.config import TokenShardsConfig
from components.tokenization.encoder import load_tokenizer
from components.tokenization.existing import adopt
from components.tokenization.shard_writer import SplitWriter
from components.tokenization.shards import ShardIndex, TokenShards, write_index
from components.tokenization.special import SpecialIds, read_special_ids, save_for_transformers
from components.tokenization.words import read_word_table

TEXTS = ["the cat sees the dog. The dog likes it.", "the dog sees the cat. walking, walking"] * 12
ALL = ("masked_lm", "masked_lm_nsp", "span_corruption", "denoising", "causal_lm", "prefix_lm")


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "t5"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, SpecialIds]:
    """Style, folder with `tokenizer/` and token shards, and the ids."""
    root = tmp_path_factory.mktemp(request.param)
    styles = importlib.import_module("tests.components.tokenization.styles").STYLES
    adopted = adopt(styles[request.param](root / "source"))
    save_for_transformers(adopted.tokenizer, str(root / "tokenizer"), adopted.special)
    tokenizer, ids = load_tokenizer(str(root / "tokenizer/tokenizer.json")), read_special_ids(root / "tokenizer")
    size = tokenizer.get_vocab_size()
    config = TokenShardsConfig(sequence_length=64)
    writer = SplitWriter(root, "train", config, size, ("s",), ids.pad, read_word_table(root / "tokenizer"))
    rows = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]
    lengths = np.array([len(row) for row in rows])
    zeros = np.zeros(len(rows), dtype=np.int64)
    writer.add(np.array([id_ for row in rows for id_ in row], dtype=np.uint32), lengths, lengths, zeros)
    index = ShardIndex(
        sequence_length=64,
        vocab_size=size,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
        mask_token_id=ids.mask,
        sources=("s",),
        has_sentences=True,
        splits={"train": writer.close()},
    )
    write_index(root, index)
    return request.param, root, ids


@pytest.mark.parametrize("objective", ALL)
def test_an_objective_takes_its_special_tokens_from_the_shards(
    objective: str, made: tuple[str, Path, SpecialIds]
) -> None:
    style, root, ids = made
    shards = TokenShards(root, "train")
    size = shards.index.vocab_size
    config = PretrainConfig.model_validate({"objective": objective, "sequence_length": 64})
    known = make_objective(config, shards, root / "tokenizer")
    numbers_B = np.arange(len(shards))
    batch = make_batch(shards, known, numbers_B, np.zeros_like(numbers_B))
    inputs, targets = batch.input_ids_BL.numpy(), batch.target_ids_T.numpy()
    assert len(targets) and max(inputs.max(), targets.max()) < known.vocabulary.num_ids
    assert not {ids.pad, ids.mask} & set(targets.tolist())
    if objective in ("causal_lm", "prefix_lm", "span_corruption", "denoising"):
        assert ids.eos in targets
    if objective in ("masked_lm", "masked_lm_nsp", "denoising"):
        assert ids.mask in inputs
    if objective in ("masked_lm", "masked_lm_nsp"):
        assert not {ids.bos, ids.eos} & set(targets.tolist())
    if objective == "masked_lm_nsp":
        assert batch.pair_labels_P is not None and len(batch.pair_labels_P) > 0
    if objective == "span_corruption":
        sentinels = known.vocabulary.sentinels
        assert int(sentinels[0]) in inputs and int(sentinels[0]) in targets
        assert (style == "t5") == (int(sentinels[0]) < size)


def test_the_exported_tokenizer_reads_and_writes_the_sentinels_of_the_training(
    made: tuple[str, Path, SpecialIds], tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoTokenizer

    _, root, _ = made
    shards = TokenShards(root, "train")
    config: Any = PretrainConfig.model_validate({"objective": "span_corruption", "sequence_length": 64})
    sentinels = make_objective(config, shards, root / "tokenizer").vocabulary.sentinels
    shutil.copytree(root / "tokenizer", tmp_path / "model")
    add_sentinels(tmp_path / "model", 100)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    assert tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)]) == sentinels.tolist()
    ids = tokenizer("the cat <extra_id_0> the dog <extra_id_99>", add_special_tokens=False)["input_ids"]
    assert [id_ for id_ in ids if id_ in sentinels] == [sentinels[0], sentinels[99]]
    assert "<extra_id_99>" in tokenizer.decode(ids)
