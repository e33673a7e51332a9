"""Trains a tokenizer of each kind, the same one from the same texts on every run and any number of threads.

Of the trainers in tokenizers 0.23 only that of BPE keeps this promise (measured: three runs, three vocabularies for
WordPiece and for Unigram, whose tables are ordered by a random hash). So WordPiece is learned as BPE over words that
start with a mark and then rewritten, and Unigram is our own (`unigram.py`). 8 MB of text on two cores: 2 s for BPE
and for WordPiece, 9 s for Unigram.

Memory follows the number of distinct words, and so the bound on the sample (`tokenizer.max_training_bytes`), not the
corpus. Peaks of the whole step, for BPE of 32,768 tokens on text in which one word in 50 is new: 474 MB for a sample of
64 MB from 100 MB of text, 479 MB for one from 1 GB; about 1.1 GB for 256 MB and 1.6 GB for the default of 512 MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from components.tokenization.config import TrainedKind
from components.tokenization.pieces import MARK
from components.tokenization.pretokenize import MARKED_WORDS, WORDS, WORDS_WITH_SPACES, with_han_words
from components.tokenization.scripts import is_han
from components.tokenization.special import SPECIAL_TOKENS, UNK, add_template
from components.tokenization.unigram import train_unigram

MAX_ALPHABET_FRACTION = 0.75
MAX_CHUNK_CHARACTERS = 32
Texts = Callable[[], Iterable[list[str]]]
"""Gives the training texts in batches, afresh at each call."""


def train(kind: TrainedKind, texts: Texts, vocab_size: int, min_frequency: int, *, han_words: bool = False) -> Any:
    """A trained `tokenizers.Tokenizer` with the special tokens at ids 0 to 4 and the template set.

    Args:
        kind: the model.
        texts: the training texts.
        vocab_size: the most tokens, special ones counted; for byte_bpe at least 261.
        min_frequency: how often a pair must occur to be merged.
        han_words: whether pieces of several Chinese characters are learned; not by wordpiece.
    """
    if kind == "byte_bpe":
        tokenizer = _byte_bpe(texts, vocab_size, min_frequency, han_words)
    elif kind == "wordpiece":
        tokenizer = _wordpiece(texts, vocab_size, min_frequency)
    else:
        tokenizer = _unigram(texts, vocab_size, min_frequency, han_words)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    add_template(tokenizer)
    return tokenizer


def _byte_bpe(texts: Texts, vocab_size: int, min_frequency: int, han_words: bool) -> Any:
    """Byte-level BPE (Radford et al. 2019): any text is covered, and decoding gives it back to the byte."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pattern = with_han_words(WORDS_WITH_SPACES) if han_words else WORDS_WITH_SPACES
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _wordpiece(texts: Texts, vocab_size: int, min_frequency: int) -> Any:
    """WordPiece (Wu et al. 2016) as BERT has it: inner pieces start with ##, and unknown characters are <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = _alphabet(texts, int(MAX_ALPHABET_FRACTION * vocab_size), min_frequency)
    words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    marked = Tokenizer(models.BPE())
    marked.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(alphabet),
        min_frequency=min_frequency,
        initial_alphabet=[*alphabet, MARK],
        limit_alphabet=len(alphabet) + 1,
        show_progress=False,
    )
    marked.train_from_iterator(texts(), trainer)
    learned = sorted(marked.get_vocab().items(), key=lambda item: item[1])
    pieces = [token[1:] if token.startswith(MARK) else f"##{token}" for token, _ in learned if len(token) > 1]
    inner = [f"##{character}" for character in alphabet if character.isalnum() and not is_han(character)]
    vocabulary = list(dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *inner, *pieces]))[:vocab_size]
    tokenizer = Tokenizer(models.WordPiece({token: id_ for id_, token in enumerate(vocabulary)}, unk_token=UNK))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def _unigram(texts: Texts, vocab_size: int, min_frequency: int, han_words: bool) -> Any:
    """Unigram (Kudo 2018): the most likely segmentation; ▁ stands for a space, as which line ends count too; unknown
    characters are <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pattern = with_han_words(MARKED_WORDS) if han_words else MARKED_WORDS
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    one_space = normalizers.Replace(Regex(r"\s"), " ")
    counts = _count_words(texts, one_space, words)
    alphabet = _alphabet(texts, int(MAX_ALPHABET_FRACTION * vocab_size), min_frequency, both_forms=False)
    pieces = train_unigram(counts, sorted({*alphabet, MARK}), vocab_size - len(SPECIAL_TOKENS), min_frequency)
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + pieces
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index(UNK), byte_fallback=False))
    tokenizer.normalizer = one_space
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True), words]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme="always", split=True)
    return tokenizer


def _count_words(texts: Texts, normalizer: Any, words: Any) -> Counter[str]:
    """How often each word occurs.

    Text between spaces is cut into words once for all its occurrences, unless it is long: text without spaces, of which
    every stretch is another, would have to be held whole.
    """
    chunks: Counter[str] = Counter()
    counts: Counter[str] = Counter()

    def cut(chunk: str, count: int) -> None:
        for word, _ in words.pre_tokenize_str(MARK + chunk.removeprefix(MARK)):
            counts[word] += count

    for batch in texts():
        for text in batch:
            for chunk in normalizer.normalize_str(text).split(" "):
                if len(chunk) > MAX_CHUNK_CHARACTERS:
                    cut(chunk, 1)
                else:
                    chunks[chunk] += 1
    for chunk, count in chunks.items():
        cut(chunk, count)
    return counts


def _alphabet(texts: Texts, max_forms: int, min_frequency: int, *, both_forms: bool = True) -> list[str]:
    """The most frequent characters, as many as take `max_forms` entries; ties go to the lower code point.

    With `both_forms` a letter takes two, `a` and `##a`.
    """
    counts: Counter[str] = Counter()
    for batch in texts():
        counts.update("".join(batch))
    chosen: list[str] = []
    num_forms = 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count < min_frequency or character.isspace() or character == MARK:
            continue
        num_forms += 2 if both_forms and character.isalnum() and not is_han(character) else 1
        if num_forms > max_forms:
            break
        chosen.append(character)
    return sorted(chosen)
