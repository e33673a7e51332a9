"""Templates, verbalizers, demonstrations and config problems."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from components.prompting.config import DEFAULT_TEMPLATE, PromptConfig, PromptExamplesConfig, problems
from components.prompting.demonstrations import Rows, choose_demonstrations, permute_labels
from components.prompting.template import Demonstration, parse_template
from components.prompting.verbalizer import phrases_of
from infra.errors import ConfigError


def test_a_prompt_is_instruction_then_demonstrations_then_query_without_trailing_space() -> None:
    template = parse_template(DEFAULT_TEMPLATE, instruction="Name it.", demo_delimiter="\n\n")
    demonstrations = [Demonstration(id="1", text=" an axe\n", phrase="tool")]
    context = template.context(demonstrations, "a sailor ")
    assert context == "Name it.\n\nDefinition: an axe\nCategory: tool\n\nDefinition: a sailor\nCategory:"
    assert template.continuation("person") == " person"


def test_braces_in_a_text_are_text() -> None:
    template = parse_template(DEFAULT_TEMPLATE, instruction="", demo_delimiter="\n\n")
    context = template.context(
        [Demonstration(id="1", text="{{label}} {0}", phrase="{{text}}")], "{{text}}{{label}} {x}"
    )
    assert context == "Definition: {{label}} {0}\nCategory: {{text}}\n\nDefinition: {{text}}{{label}} {x}\nCategory:"


def test_the_registered_form_has_two_variables_and_no_more() -> None:
    template = parse_template("文本：{{ text }}\n类别：{{ label }}", instruction="", demo_delimiter="\n\n")
    form = template.registered_form([Demonstration(id="1", text="写 {{name}} 的人", phrase="人物")])
    assert form == "文本：写 { {name} } 的人\n类别：人物\n\n文本：{{text}}\n类别：{{label}}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Category: {{label}}", r"prompt.template: \{\{text\}\} is missing"),
        ("Definition: {{text}}", r"prompt.template: \{\{label\}\} is missing"),
        ("{{label}}: {{text}}", r"must come after \{\{text\}\} and be the last"),
        ("{{text}} is {{label}}.", "be the last thing"),
        ("{{text}} {{text}} {{label}}", r"\{\{text\}\} stands there 2 times"),
        ("{{text}} {{name}} {{label}}", "name: only"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template: str, message: str) -> None:
    found = problems(PromptConfig(template=template))
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(*found)


def test_every_problem_is_told_at_once() -> None:
    config = PromptConfig(template="x", verbalizer={"a": "same", "b": "same", "c": ""}, shots=(0, 0, -1))
    text = "\n".join(problems(config, ["a", "b", "d"], "prompt"))
    for part in ("{{text}} is missing", "{{label}} is missing", "a, b have the same phrase 'same'", "verbalizer.c",
                 "no phrase for the labels d", "no labels c", "names a number twice", "between 0 and 256"):  # fmt: skip
        assert part in text
    assert problems(PromptConfig()) == [] and problems(PromptExamplesConfig()) == []


def test_a_verbalizer_that_lacks_labels_names_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"no phrase for the labels noun\.act, noun\.person"):
        phrases_of(["noun.act", "noun.person", "noun.state"], {"noun.state": "state"})


def test_unknown_keys_and_no_shots_are_refused_and_number_labels_accepted() -> None:
    with pytest.raises(ValidationError, match="shot"):
        PromptConfig.model_validate({"shot": 3})
    with pytest.raises(ValidationError, match="shots"):
        PromptConfig(shots=())
    assert PromptConfig.model_validate({"verbalizer": {0: "bad", 1: "good"}}).verbalizer == {"0": "bad", "1": "good"}


@pytest.mark.parametrize(
    ("labels", "phrases"),
    [
        (["noun.act", "noun.person"], ["act", "person"]),
        (["world_affairs", "sport"], ["world affairs", "sport"]),
        (["comp.graphics", "rec.autos"], ["comp.graphics", "rec.autos"]),
        (["a_b", "a b"], ["a_b", "a b"]),
        (["体育", "财经"], ["体育", "财经"]),
        (["v1.5"], ["v1.5"]),
    ],
)
def test_without_a_verbalizer_a_label_stands_for_itself_less_a_shared_prefix(
    labels: list[str], phrases: list[str]
) -> None:
    assert phrases_of(labels, None) == phrases


def rows(count: int, labels: list[str]) -> Rows:
    return Rows(
        ids=[str(i) for i in range(count)],
        texts=[f"text {i}" for i in range(count)],
        labels=[labels[(i * i) % len(labels)] for i in range(count)],
    )


def test_demonstrations_are_balanced_whatever_the_training_rows_are() -> None:
    labels = ["a", "b", "c"]
    training = Rows(ids=[str(i) for i in range(100)], texts=["x"] * 100, labels=["a"] * 96 + ["b", "b", "c", "c"])
    chosen = choose_demonstrations(training, labels, ["A", "B", "C"], 6, 0, 0)
    assert sorted(demo.phrase for demo in chosen) == ["A", "A", "B", "B", "C", "C"]
    assert len({demo.id for demo in chosen}) == 6
    for demo in chosen:  # each phrase is that of its own row
        assert demo.phrase == training.labels[int(demo.id)].upper()


def test_a_draw_is_a_function_of_seed_and_number_and_draws_differ() -> None:
    training = rows(60, ["a", "b"])
    draw = [choose_demonstrations(training, ["a", "b"], ["a", "b"], 4, seed, d) for seed, d in [(0, 0), (0, 0), (0, 1)]]
    assert draw[0] == draw[1] != draw[2]


def test_more_shots_than_rows_gives_all_rows_once() -> None:
    chosen = choose_demonstrations(rows(3, ["a", "b"]), ["a", "b"], ["a", "b"], 9, 0, 0)
    assert sorted(demo.id for demo in chosen) == ["0", "1", "2"]


def test_the_control_gives_every_demonstration_a_wrong_label() -> None:
    phrases = ["a", "b", "c", "d"]
    chosen = choose_demonstrations(rows(40, phrases), phrases, phrases, 8, 0, 0)
    wrong = permute_labels(chosen, phrases, 0)
    assert [demo.text for demo in wrong] == [demo.text for demo in chosen]
    assert all(a.phrase != b.phrase for a, b in zip(chosen, wrong, strict=True))


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, components.prompting.config, components.prompting.step as s; heavy = {'torch', 'ray', "
        "'transformers', 'mlflow', 'pandas', 'pyarrow', 'sklearn', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
