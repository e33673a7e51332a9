"""Prompts as token ids: beginning-of-sequence token first, the context tokenised whole, labels by ids of their own.

A label's ids are those that follow the template's last literal, where the tokenizer keeps the boundary; else (Chinese
without spaces may merge across it) those of the label by itself. One label has one sequence of ids, in every prompt
and in tuning, so that likelihoods stay comparable; how often whole-text tokenisation differs is counted.

If one label's ids begin another's, the shorter one would always win: then the end token is scored after every label.

Too long: whole demonstrations go first, the farthest from the query first; then the text is cut at its end. Cutting
the prompt's left side instead would lose the instruction and start in the middle of a word. Both are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.prompting.template import Demonstration, PromptTemplate
from infra.errors import UserError

PROBES = ("0", "x", "The", '"', "一")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSpec:
    """A prompt but for its text: what is to be evaluated."""

    template: PromptTemplate
    demonstrations: tuple[Demonstration, ...]
    phrases: tuple[str, ...]
    """What stands for each label, in the order of the task's labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """One context, ready to be scored."""

    ids: tuple[int, ...]
    prefix_length: int
    """How many leading tokens all prompts encoded together with as many demonstrations share; below `len(ids)`."""
    num_demonstrations: int
    was_cut: bool
    """Whether the text lost its end."""
    context: str


class PromptEncoder:
    """Encodes the prompts of one spec.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        spec: the prompt.
        max_length: tokens of context and label together.

    Raises:
        UserError: the prompt does not fit even with an empty text, or a phrase has no tokens or those of another.
    """

    def __init__(self, tokenizer: Any, spec: PromptSpec, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        self.bos_ids: list[int] = [] if first is None else [int(first)]
        self.label_ids, self.scores_end = self._encode_labels()
        self.max_context = max_length - max(len(ids) for ids in self.label_ids)
        self._prefixes: dict[int, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[str]) -> list[EncodedPrompt]:
        """The prompts of `texts`, in order."""
        done: dict[int, EncodedPrompt] = {}
        waiting = list(range(len(texts)))
        for kept in range(len(self.spec.demonstrations), -1, -1):
            contexts = [self._context(kept, texts[i]) for i in waiting]
            too_long = []
            for i, context, ids in zip(waiting, contexts, self._ids(contexts), strict=True):
                if len(ids) <= self.max_context:
                    done[i] = _prompt(kept, ids, context, was_cut=False)
                else:
                    too_long.append(i)
            waiting = too_long
            if not waiting:
                break
        for i in waiting:
            done[i] = self._cut(texts[i])
        prefixes: dict[int, int] = {}
        for kept in {prompt.num_demonstrations for prompt in done.values()}:
            members = [prompt.ids for prompt in done.values() if prompt.num_demonstrations == kept]
            shared = _common_prefix([tuple(self._prefix(kept)), *members])
            prefixes[kept] = min(len(shared), min(map(len, members)) - 1)
        prompts = [done[i] for i in range(len(texts))]
        return [replace(prompt, prefix_length=prefixes[prompt.num_demonstrations]) for prompt in prompts]

    def boundary_mismatches(self, prompts: Sequence[EncodedPrompt]) -> int:
        """How many (prompt, label) pairs the tokenizer, given the whole text, would encode otherwise."""
        continuations = [self.spec.template.continuation(phrase) for phrase in self.spec.phrases]
        wholes = self._ids([prompt.context + continuation for prompt in prompts for continuation in continuations])
        end = self.scores_end
        labels = [ids[:-1] if end else ids for ids in self.label_ids]
        expected = [[*prompt.ids, *ids] for prompt in prompts for ids in labels]
        return sum(whole != want for whole, want in zip(wholes, expected, strict=True))

    def _encode_labels(self) -> tuple[list[list[int]], bool]:
        template, phrases = self.spec.template, self.spec.phrases
        literal = template.after_text
        probe = self._plain([literal])[0] if literal else []
        label_ids = []
        for phrase in phrases:
            continuation = template.continuation(phrase)
            alone, whole = self._plain([continuation, literal + continuation])
            label_ids.append(whole[len(probe) :] if whole[: len(probe)] == probe else alone)
        unknown = [phrase for phrase, ids in zip(phrases, label_ids, strict=True) if not ids]
        if unknown:
            raise UserError(f"prompt.verbalizer: the tokenizer gives no token for {', '.join(map(repr, unknown))}")
        owners: dict[tuple[int, ...], str] = {}
        for phrase, ids in zip(phrases, label_ids, strict=True):
            if (other := owners.setdefault(tuple(ids), phrase)) != phrase:
                raise UserError(
                    f"prompt.verbalizer: {other!r} and {phrase!r} are the same tokens {ids} to this tokenizer; "
                    "give one of them another phrase, or use tokenizer.kind=byte_bpe, which knows every character"
                )
        ends = any(tuple(ids[:length]) in owners for ids in label_ids for length in range(1, len(ids)))
        if ends:
            label_ids = [[*ids, int(self.tokenizer.eos_token_id)] for ids in label_ids]
        return label_ids, ends

    def _context(self, kept: int, text: str) -> str:
        demonstrations = self.spec.demonstrations
        return self.spec.template.context(demonstrations[len(demonstrations) - kept :], text)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens; `</s>` written in a text is text."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _ids(self, contexts: Sequence[str]) -> list[list[int]]:
        return [self.bos_ids + ids for ids in self._plain(contexts)]

    def _prefix(self, kept: int) -> tuple[int, ...]:
        """What prompts of texts with nothing in common begin with, so that one text alone shares no more than that."""
        if kept not in self._prefixes:
            encoded = self._ids([self._context(kept, probe) for probe in PROBES])
            self._prefixes[kept] = _common_prefix([tuple(ids) for ids in encoded])
        return self._prefixes[kept]

    def _cut(self, text: str) -> EncodedPrompt:
        """Without demonstrations, with as much of the text's beginning as fits."""
        text = text.strip()
        offsets = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        overhead = len(self._ids([self._context(0, "")])[0])
        room = min(len(offsets), max(0, self.max_context - overhead))
        while overhead <= self.max_context:
            context = self._context(0, text[: offsets[room - 1][1]] if room else "")
            ids = self._ids([context])[0]
            if len(ids) <= self.max_context:
                return _prompt(0, ids, context, was_cut=True)
            room = max(0, room - (len(ids) - self.max_context))
        raise UserError(
            f"prompt.template: instruction and template take {overhead} tokens without any text, but a prompt may have "
            f"{self.max_context} beside its label; shorten them or raise prompt.max_length"
        )


def _prompt(kept: int, ids: list[int], context: str, *, was_cut: bool) -> EncodedPrompt:
    return EncodedPrompt(ids=tuple(ids), prefix_length=0, num_demonstrations=kept, was_cut=was_cut, context=context)


def _common_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common beginning: that of the smallest and the largest in lexicographic order."""
    first, last = min(sequences), max(sequences)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
