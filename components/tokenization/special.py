"""The five special tokens, with the same ids in every tokenizer, and the template that puts them around a text."""

from __future__ import annotations

from typing import Any

PAD, UNK, BOS, EOS, MASK = "<pad>", "<unk>", "<s>", "</s>", "<mask>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS, MASK)
PAD_ID, UNK_ID, BOS_ID, EOS_ID, MASK_ID = range(5)
NUM_SPECIAL_PER_DOCUMENT = 2


def add_template(tokenizer: Any) -> None:
    """Makes `tokenizer` (of tokenizers) put `<s> text </s>`, and `<s> a </s> b </s>` for a pair."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B {EOS}", special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)]
    )


def save_for_transformers(tokenizer: Any, folder: str) -> None:
    """Writes `tokenizer` so that `AutoTokenizer.from_pretrained(folder)` loads it, with nothing of ours installed."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        cls_token=BOS,
        eos_token=EOS,
        sep_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,  # else decoding takes the space before a full stop away
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
