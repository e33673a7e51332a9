r"""Templates: plain text with two placeholders, replaced once.

Whitespace rule: what stands between the last visible character and `{{label}}` belongs to the label. A context that
ends in a space makes a byte-level tokenizer split " sport" into `s`, `port`: measured on 60 prompts, 60 predictions
changed. So `Category: {{label}}` gives the context `...Category:` and the continuation ` artifact`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One input-output example of a prompt."""

    id: str
    """Of the training row."""
    text: str
    phrase: str
    """What stands for its label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """A parsed template with what stands around it: instruction and delimiter."""

    before_text: str
    after_text: str
    """Between text and label, without the whitespace before the label."""
    separator: str
    """The whitespace before the label."""
    instruction: str
    demo_delimiter: str

    def query(self, text: str) -> str:
        """The template up to its label, which the model is to continue."""
        return f"{self.before_text}{text.strip()}{self.after_text}"

    def continuation(self, phrase: str) -> str:
        """What follows a context when the label's phrase is `phrase`."""
        return f"{self.separator}{phrase}"

    def context(self, demonstrations: Sequence[Demonstration], text: str) -> str:
        """Instruction, demonstrations and query, without trailing whitespace."""
        parts = [self.instruction.strip()] if self.instruction.strip() else []
        parts += [self.query(demo.text) + self.continuation(demo.phrase) for demo in demonstrations]
        return self.demo_delimiter.join([*parts, self.query(text)])

    def registered_form(self, demonstrations: Sequence[Demonstration]) -> str:
        """The whole prompt as MLflow registers it, with `{{text}}` and `{{label}}` as its only variables."""
        plain = [
            Demonstration(id=demo.id, text=_without_variables(demo.text), phrase=_without_variables(demo.phrase))
            for demo in demonstrations
        ]
        return self.context(plain, "{{text}}") + self.continuation("{{label}}")


def parse_template(template: str, *, instruction: str, demo_delimiter: str) -> PromptTemplate:
    """Splits `template` at its placeholders. It must have passed `template_problems`."""
    before_text, _, rest = _split(template)[0]
    middle = rest.rstrip()
    return PromptTemplate(
        before_text=before_text,
        after_text=middle,
        separator=rest[len(middle) :],
        instruction=instruction,
        demo_delimiter=demo_delimiter,
    )


def template_problems(template: str, where: str) -> list[str]:
    """What is wrong with a template, one line each.

    Args:
        template: what the user wrote.
        where: its dotted key, for messages.
    """
    names = PLACEHOLDER.findall(template)
    found = [f"{where}: {{{{{name}}}}} is missing; write it once" for name in ("text", "label") if name not in names]
    found += [
        f"{where}: {{{{{name}}}}} stands there {names.count(name)} times; write it once"
        for name in ("text", "label")
        if names.count(name) > 1
    ]
    unknown = sorted(set(names) - {"text", "label"})
    if unknown:
        found.append(
            f"{where}: {', '.join(unknown)}: only {{{{text}}}} and {{{{label}}}} are replaced; remove the rest"
        )
    if not found and not _split(template):
        found.append(f"{where}: {{{{label}}}} must come after {{{{text}}}} and be the last thing in the template")
    return found


def _split(template: str) -> list[tuple[str, str, str]]:
    """(before text, text's placeholder, between text and label), if the template has that form."""
    matches = list(PLACEHOLDER.finditer(template))
    if [match.group(1) for match in matches] != ["text", "label"] or template[matches[1].end() :].strip():
        return []
    text, label = matches
    return [(template[: text.start()], text.group(), template[text.end() : label.start()])]


def _without_variables(text: str) -> str:
    return text.replace("{{", "{ {").replace("}}", "} }")
