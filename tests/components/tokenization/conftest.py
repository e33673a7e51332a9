"""Small tokenizers in the styles of released ones, trained on a few words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "the cat sees the dog",
    "The dog likes walking under 1984 trees",
    "a café, naïve (it's)",
    "中华人民共和国",
] * 20
Style = Callable[[Path], Path]


def bert_like(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    return write(folder, tokenizer, {f"{name}_token": f"[{name.upper()}]" for name in names})


def gpt2_like(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([end])
    told = {f"{name}_token": end for name in ("bos", "eos", "unk")}
    return write(folder, tokenizer, told | {"pad_token": end})  # as many folders of GPT-2 say


def llama_like(folder: Path) -> Path:
    """BPE with byte fallback whose normaliser writes ▁, as SentencePiece's; only <unk>, <s> and </s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # so that no piece is a sentence
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=special))
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = [entry for entry in told["added_tokens"] if not entry["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(told | {"pre_tokenizer": None}))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}
    return write(folder, tokenizer, named | {"pad_token": None})


def t5_like(folder: Path) -> Path:
    pieces = ["▁", "▁the", "▁cat", "▁dog", "s", "e", *"abcdfghijklmnopqrtuvwxyzT中华", "see"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -2.0 - 0.01 * place) for place, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    sentinels = [AddedToken(f"<extra_id_{i}>", special=True, normalized=False) for i in range(99, -1, -1)]
    tokenizer.add_special_tokens(sentinels)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return write(folder, tokenizer, named, in_map=True)


STYLES: dict[str, Style] = {"bert": bert_like, "gpt2": gpt2_like, "llama": llama_like, "t5": t5_like}


def write(folder: Path, tokenizer: Any, named: dict[str, Any], *, in_map: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    name = "special_tokens_map.json" if in_map else "tokenizer_config.json"
    (folder / name).write_text(json.dumps(named))
    return folder


@pytest.fixture
def make_style(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return STYLES[name](tmp_path / name)

    return make
