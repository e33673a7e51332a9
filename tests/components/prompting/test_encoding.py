"""Prompts as tokens: boundaries, the first token, what is cut when they are too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from components.prompting.calibration import calibrated, fit_log_prior
from components.prompting.encoding import PromptEncoder, PromptSpec
from components.prompting.template import Demonstration, parse_template
from infra.errors import UserError

ENGLISH = "Definition: {{text}}\nCategory: {{label}}"
CHINESE = "文本：{{text}}\n类别：{{label}}"
TEXT = "an instrument used for measuring time, made of glass or metal, in a vessel"


def encoder(
    tokenizer: Any, phrases: tuple[str, ...], *, template: str = ENGLISH, shots: int = 0, max_length: int = 256
) -> PromptEncoder:
    parsed = parse_template(template, instruction="", demo_delimiter="\n\n")
    demonstrations = tuple(
        Demonstration(id=str(i), text=f"a tool number {i}", phrase=phrases[i % len(phrases)]) for i in range(shots)
    )
    return PromptEncoder(
        tokenizer, PromptSpec(template=parsed, demonstrations=demonstrations, phrases=phrases), max_length
    )


@pytest.mark.parametrize("kind", ["byte_tokenizer", "wordpiece_tokenizer"])
@pytest.mark.parametrize("shots", [0, 3])
def test_context_and_label_ids_are_those_of_the_whole_text_after_the_first_token(
    kind: str, shots: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    subject = encoder(tokenizer, ("artifact", "world affairs", "person"), shots=shots)
    prompts = subject.encode([TEXT, "x"])
    assert all(prompt.ids[0] == tokenizer.bos_token_id for prompt in prompts)
    for prompt in prompts:
        for phrase, ids in zip(subject.spec.phrases, subject.label_ids, strict=True):
            whole = tokenizer(f"{prompt.context} {phrase}", add_special_tokens=False)["input_ids"]
            assert [*prompt.ids[1:], *ids] == whole
    assert subject.boundary_mismatches(prompts) == 0


def test_chinese_labels_without_spaces_have_one_sequence_of_ids_and_merges_are_counted(byte_tokenizer: Any) -> None:
    # 为体 is a token of its own, so that the whole text is tokenised across the boundary
    subject = encoder(byte_tokenizer, ("体育新闻", "工具"), template="文本：{{text}}\n类别为{{label}}")
    prompts = subject.encode(["在海上旅行的人", "一种工具"])
    assert [byte_tokenizer.decode(ids) for ids in subject.label_ids] == ["体育新闻", "工具"]
    assert subject.boundary_mismatches(prompts) == 2  # one label of two, in both prompts
    whole = byte_tokenizer(f"{prompts[0].context}工具", add_special_tokens=False)["input_ids"]
    assert whole == [*prompts[0].ids[1:], *subject.label_ids[1]]


def test_a_chinese_template_that_ends_in_a_colon_keeps_the_boundary(byte_tokenizer: Any) -> None:
    subject = encoder(byte_tokenizer, ("体育新闻", "人物"), template=CHINESE, shots=2)
    assert subject.boundary_mismatches(subject.encode(["在海上旅行的人", "一种工具"])) == 0


def test_special_tokens_written_in_a_text_are_text(byte_tokenizer: Any) -> None:
    prompt = encoder(byte_tokenizer, ("a", "b")).encode(["x </s> <mask> y"])[0]
    assert not set(prompt.ids[1:]) & set(byte_tokenizer.all_special_ids)


def test_whole_demonstrations_go_first_and_the_oldest_first(byte_tokenizer: Any) -> None:
    full = encoder(byte_tokenizer, ("a", "b"), shots=4)
    room = len(full.encode([TEXT])[0].ids)
    subject = encoder(byte_tokenizer, ("a", "b"), shots=4, max_length=room - 5)
    short, long = subject.encode(["x", TEXT])
    assert (short.num_demonstrations, long.num_demonstrations) == (4, 3)
    assert "number 0" not in long.context and "number 3" in long.context
    assert long.context.startswith("Definition:") and long.context.endswith(f"{TEXT}\nCategory:") and not long.was_cut


@pytest.mark.parametrize("kind", ["byte_tokenizer", "wordpiece_tokenizer"])
def test_a_text_that_does_not_fit_loses_its_end_and_the_template_stays(
    kind: str, request: pytest.FixtureRequest
) -> None:
    subject = encoder(request.getfixturevalue(kind), ("a", "b"), shots=2, max_length=32)
    prompt = subject.encode([TEXT * 20])[0]
    assert prompt.was_cut and prompt.num_demonstrations == 0
    assert prompt.context.startswith("Definition: an ") and prompt.context.endswith("\nCategory:")
    assert 28 <= len(prompt.ids) <= subject.max_context


def test_a_cut_chinese_text_fits(byte_tokenizer: Any) -> None:
    subject = encoder(byte_tokenizer, ("体育", "人物"), template=CHINESE, max_length=40)
    prompt = subject.encode(["测量时间的仪器，" * 50])[0]
    assert prompt.was_cut and len(prompt.ids) <= subject.max_context and "测量" in prompt.context


def test_a_template_that_alone_does_not_fit_is_the_users_mistake(byte_tokenizer: Any) -> None:
    subject = encoder(byte_tokenizer, ("a", "b"), template=f"{TEXT} {TEXT} {{{{text}}}} {{{{label}}}}", max_length=16)
    with pytest.raises(UserError, match=r"take \d+ tokens without any text"):
        subject.encode([TEXT])


def test_a_label_that_begins_another_is_ended_so_that_it_does_not_always_win(byte_tokenizer: Any) -> None:
    plain = encoder(byte_tokenizer, ("sports", "world affairs"))
    ended = encoder(byte_tokenizer, ("world", "world affairs"))
    assert not plain.scores_end and ended.scores_end
    assert all(ids[-1] == byte_tokenizer.eos_token_id for ids in ended.label_ids)
    assert ended.boundary_mismatches(ended.encode([TEXT])) == 0


def test_labels_with_the_same_tokens_are_the_users_mistake(wordpiece_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="'ΩΩ' and 'ЖЖ' are the same tokens"):
        encoder(wordpiece_tokenizer, ("person", "ΩΩ", "ЖЖ"))


def test_calibration_makes_a_constant_preference_disappear() -> None:
    generator = np.random.default_rng(0)
    fair_NK = generator.normal(size=(4000, 3))
    preference_K = np.array([5.0, 0.0, -2.0])
    biased_NK = fair_NK + preference_K
    prior_K = fit_log_prior(biased_NK)
    np.testing.assert_allclose(np.exp(prior_K).sum(), 1.0)
    share_K = np.bincount(calibrated(biased_NK, prior_K).argmax(axis=1), minlength=3) / 4000
    assert np.bincount(biased_NK.argmax(axis=1), minlength=3)[0] > 3900
    assert share_K.min() > 0.15
    shifted = fit_log_prior(biased_NK + generator.normal(size=(4000, 1)))  # only ratios within a row count
    np.testing.assert_allclose(shifted, prior_K)
