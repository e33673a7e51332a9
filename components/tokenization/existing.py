"""Takes a Hugging Face fast tokenizer as it is, and gives it the special tokens that the objectives need.

Ids that it has never move, so that weights made with it keep fitting. What it lacks of pad, bos, eos and mask comes
after its last id and is told; a model that starts from its maker's weights then gets as many new rows
(`networks/models.py`). [CLS] and [SEP] count as bos and eos. A pad token that is also another one, such as
`<|endoftext|>` in many GPT-2 folders, counts as missing: padding must not look like an end.

Its normaliser and pre-tokenizer stay. The template around a text becomes ours, `bos text eos`, also where the maker
puts nothing (GPT-2) or bos alone (Llama). Not for a folder with a SentencePiece model alone: save it once with
`AutoTokenizer.from_pretrained(...).save_pretrained(...)`, which writes tokenizer.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.tokenization.config import TokenizerConfig
from components.tokenization.pieces import piece_ids, special_pieces
from components.tokenization.special import BOS, EOS, MASK, PAD, UNK, SpecialTokens, add_template
from infra.errors import DataError

ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "bos": (("bos_token", "cls_token"), (BOS, "[CLS]"), BOS),
    "eos": (("eos_token", "sep_token"), (EOS, "[SEP]"), EOS),
    "pad": (("pad_token",), (PAD, "[PAD]"), PAD),
    "mask": (("mask_token",), (MASK, "[MASK]"), MASK),
}
"""For each role: its keys in a tokenizer_config.json, usual names where no key tells, and the name of a new token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptedTokenizer:
    """An existing tokenizer, ready to be saved."""

    tokenizer: Any
    """Of tokenizers."""
    special: SpecialTokens
    added: tuple[str, ...]
    """Tokens that it lacked, with the ids after its last, in this order."""


def adopt(folder: Path) -> AdoptedTokenizer:
    """The tokenizer of a folder with tokenizer.json, and, if there, tokenizer_config.json and special_tokens_map.json.

    Raises:
        DataError: there is no tokenizer.json that can be read, its ids have gaps, or it needs a token for unknown
            characters that cannot be added.
    """
    from tokenizers import AddedToken, Tokenizer

    path = folder / "tokenizer.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        known = piece_ids(told)
    except FileNotFoundError as error:
        raise DataError(
            f"tokenizer.path={folder}: has no tokenizer.json: write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error
    if sorted(known.values()) != list(range(len(known))):
        raise DataError(
            f"{path}: its {len(known)} tokens do not have the ids 0 to {len(known) - 1}, each once: new tokens would "
            "take the ids of old ones"
        )
    special = _special(told, known, _settings(folder), path)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(told, ensure_ascii=False))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path}: the tokenizers library cannot load it: {error}") from error
    already = special_pieces(told)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special.all if token not in already])
    now = tokenizer.get_vocab(with_added_tokens=True)
    news = sorted(id_ for token, id_ in now.items() if token not in known)
    if any(now.get(token) != id_ for token, id_ in known.items()) or news != list(range(len(known), len(now))):
        raise DataError(f"{path}: the tokenizers library gives its tokens other ids than it names")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    add_template(tokenizer, special)
    added = sorted((token for token in now if token not in known), key=lambda token: int(now[token]))
    return AdoptedTokenizer(tokenizer=tokenizer, special=special, added=tuple(added))


def planned_vocab_size(config: TokenizerConfig) -> int | None:
    """The tokens that a tokenizer will have, at most, told without tokenizers; None of a folder that is not here."""
    if config.path is None:
        return config.vocab_size
    folder = Path(config.path)
    try:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        known = piece_ids(told)
        special = _special(told, known, _settings(folder), folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the step itself says what is wrong
        return None
    return len(known.keys() | set(special.all))


def _settings(folder: Path) -> dict[str, str]:
    """What the folder says of its special tokens; tokenizer_config.json before special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / name}: not JSON: {error}") from error
        for key, value in told.items() if isinstance(told, dict) else ():
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str) and content:
                found[key] = content
    return found


def _special(told: Any, known: dict[str, int], settings: dict[str, str], path: Path) -> SpecialTokens:
    """The special tokens, of which some may be new; may give the model of `told` one for unknown characters."""
    marked = special_pieces(told)
    unk = _unknown(told, known, path)
    if unk is None and settings.get("unk_token") in known:
        unk = settings["unk_token"]
    chosen: dict[str, str] = {}
    for role, (keys, usual, fallback) in ROLES.items():
        named = [settings[key] for key in keys if key in settings] + [name for name in usual if name in marked]
        taken = {*chosen.values(), *({unk} if unk else ())} if role in ("pad", "mask") else set()
        free = [name for name in named if name not in taken]
        chosen[role] = free[0] if free else _new_name(fallback, known.keys() | set(chosen.values()))
    return SpecialTokens(unk=unk, **chosen)


def _new_name(name: str, taken: Any) -> str:
    """`name`, in more brackets where that is a token of text already."""
    while name in taken:
        name = f"<{name}>"
    return name


def _unknown(told: Any, known: dict[str, int], path: Path) -> str | None:
    """The token for unknown characters, None where the model needs none; one that it lacks is put into `told`."""
    model = told["model"]
    vocabulary = model["vocab"]
    covers_all = model.get("byte_fallback") or "ByteLevel" in json.dumps(
        [told.get("pre_tokenizer"), told.get("normalizer")]
    )
    if isinstance(vocabulary, list):
        unk_id = model.get("unk_id")
        unk = None if unk_id is None else str(vocabulary[unk_id][0])
    else:
        unk = model.get("unk_token") or None
    if (unk is None and covers_all) or unk in known:
        return unk
    if len(known) != len(vocabulary):  # then a further piece of the model would move the tokens added after it
        raise DataError(
            f"{path}: its {model.get('type')} model has no token for unknown characters, and tokens were added after "
            "its last: use another tokenizer"
        )
    unk = _new_name(unk or UNK, known)
    if isinstance(vocabulary, list):
        vocabulary.append([unk, 0.0])
        model["unk_id"] = len(vocabulary) - 1
    else:
        vocabulary[unk] = len(vocabulary)
        model["unk_token"] = unk
    return unk
