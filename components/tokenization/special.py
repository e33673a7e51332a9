"""The special tokens of a tokenizer: which there are, the template that puts them around a text, and the folder that
tells them.

A tokenizer that is trained here has the five at ids 0 to 4. An existing one (`existing.py`) has its own, wherever its
maker put them, so ids are read from the folder and written into `shards.json`: nothing else may assume them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import DamagedArtifactError

PAD, UNK, BOS, EOS, MASK = "<pad>", "<unk>", "<s>", "</s>", "<mask>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS, MASK)
NUM_SPECIAL_PER_DOCUMENT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """The special tokens of one tokenizer, as text. `bos` and `eos` may be one token, as in GPT-2."""

    pad: str = PAD
    unk: str | None = UNK
    """None where every text is covered and no token is named as unknown."""
    bos: str = BOS
    eos: str = EOS
    mask: str = MASK

    @property
    def all(self) -> tuple[str, ...]:
        """Each of them once."""
        named = (self.pad, self.unk, self.bos, self.eos, self.mask)
        return tuple(dict.fromkeys(token for token in named if token is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """The ids of the special tokens of one tokenizer."""

    pad: int
    unk: int | None
    bos: int
    eos: int
    mask: int


def special_ids(tokenizer: Any, special: SpecialTokens) -> SpecialIds:
    """The ids that `tokenizer` (of tokenizers) gives to `special`, all of which it has."""
    return SpecialIds(
        pad=tokenizer.token_to_id(special.pad),
        unk=None if special.unk is None else tokenizer.token_to_id(special.unk),
        bos=tokenizer.token_to_id(special.bos),
        eos=tokenizer.token_to_id(special.eos),
        mask=tokenizer.token_to_id(special.mask),
    )


def read_special_ids(folder: Path) -> SpecialIds:
    """The ids of the special tokens of a folder that `save_for_transformers` wrote; without transformers.

    Raises:
        DamagedArtifactError: it is no such folder.
    """
    from tokenizers import Tokenizer

    try:
        told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise DamagedArtifactError(f"{folder}: not a tokenizer folder of this project: {error}") from error
    named = {name: told.get(f"{name}_token") for name in ("pad", "unk", "bos", "eos", "mask")}
    missing = [name for name in ("pad", "bos", "eos", "mask") if tokenizer.token_to_id(named[name] or "") is None]
    if missing:
        raise DamagedArtifactError(f"{folder}: names no {', '.join(missing)} token: run the step `tokenizer` again")
    return special_ids(tokenizer, SpecialTokens(**named))


def add_template(tokenizer: Any, special: SpecialTokens | None = None) -> None:
    """Makes `tokenizer` (of tokenizers) put `<s> text </s>`, and `<s> a </s> b </s>` for a pair."""
    from tokenizers.processors import TemplateProcessing

    special = special or SpecialTokens()
    ids = special_ids(tokenizer, special)
    tokenizer.post_processor = TemplateProcessing(
        single=[special.bos, "$A", special.eos],
        pair=[special.bos, "$A", special.eos, "$B", special.eos],
        special_tokens=list({special.bos: ids.bos, special.eos: ids.eos}.items()),
    )


def save_for_transformers(tokenizer: Any, folder: str, special: SpecialTokens | None = None) -> None:
    """Writes `tokenizer` so that `AutoTokenizer.from_pretrained(folder)` loads it, with nothing of ours installed."""
    from transformers import PreTrainedTokenizerFast

    special = special or SpecialTokens()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special.pad,
        unk_token=special.unk,
        bos_token=special.bos,
        cls_token=special.bos,
        eos_token=special.eos,
        sep_token=special.eos,
        mask_token=special.mask,
        clean_up_tokenization_spaces=False,  # else decoding takes the space before a full stop away
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
