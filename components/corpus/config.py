"""Configs of the steps `task` and `corpus`. Paths and formats are execution fields: the planner resolves them to raw
files, and those count by content digest, format and source name."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from components.corpus.cleaning import CleaningConfig
from components.corpus.decontamination import DecontaminationConfig
from components.corpus.filters import FilterConfig
from components.corpus.rows import Columns, Document, ReadLimits
from infra.journal.config import FrozenConfig, execution_field
from infra.storage.raw import RawFormat

_FORMAT = "text, jsonl, csv, parquet or arrow; without it, from the file's name"


def _name(label: Any) -> Any:
    """Labels may be whole numbers, in the data as here."""
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label


class ReadingConfig(FrozenConfig):
    """What a file may take of memory and time."""

    max_document_bytes: int = Field(
        64 << 20,
        ge=1,
        le=1 << 30,
        description="bytes of a document, as the line, record or value that it is; longer ones are rejects and are "
        "never in memory whole",
    )
    max_decompressed_bytes: int = execution_field(
        64 << 30,
        ge=1,
        description="bytes that a compressed file may decompress to, for 1 MB may hold terabytes; more is an error",
    )

    def limits(self, where: str) -> ReadLimits:
        """The same for readers; `where`: the part of the config that has the keys, for messages."""
        return ReadLimits(self.max_document_bytes, self.max_decompressed_bytes, where)


class TaskConfig(ReadingConfig):
    """Labelled data: one text and one label a row."""

    train: str = execution_field(description="file, folder or glob of the training rows, or of all rows")
    validation: str | None = execution_field(None, description="rows to choose by; without it, split off by text hash")
    test: str | None = execution_field(None, description="rows to report on; without it, split off by text hash")
    format: RawFormat | None = execution_field(None, description=_FORMAT)
    text_column: str = Field("text", min_length=1, description="field of the text")
    label_column: str = Field("label", min_length=1, description="field of the label: a string or an integer")
    train_fraction: float = Field(0.8, gt=0, lt=1, description="share of the rows that are split which trains, 0 to 1")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the rows that are split to choose by")
    labels: tuple[Annotated[str, BeforeValidator(_name)], ...] | None = Field(
        None,
        description="the labels of the task; rows with another are rejects. Without it, those of the training rows",
    )
    max_labels: int = Field(1000, ge=2, description="more labels than this mean that label_column is not the label")
    sample_fraction: float = Field(1.0, gt=0, le=1, description="share of the texts to use, chosen by text hash")
    license: str | None = Field(None, description="licence of the rows, for the classifier's model card")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train_fraction + self.validation_fraction > 1 + 1e-9:
            raise ValueError(
                f"train_fraction {self.train_fraction} and validation_fraction {self.validation_fraction} sum to more "
                "than 1; what is left of 1 is the test split"
            )
        if self.labels is not None:
            if len(self.labels) < 2:
                raise ValueError(f"labels has {len(self.labels)} entries; a task needs 2 or more, or leave labels out")
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("labels names a label twice")
        if self.text_column == self.label_column:
            raise ValueError(f"text_column and label_column are both {self.text_column}; they must be two fields")
        return self


class SourceConfig(FrozenConfig):
    """One source of text."""

    path: str = execution_field(description="file, folder or glob")
    format: RawFormat | None = execution_field(None, description=_FORMAT)
    text_column: str = Field("text", min_length=1, description="field of the text; plain text files have none")
    id_column: str | None = Field(
        None, min_length=1, description="field of the document's id in its source, kept as original_id"
    )
    license_column: str | None = Field(
        None, min_length=1, description="field of the document's licence, where documents have one each"
    )
    document: Document = Field("line", description="what a document of a plain text file is: line, paragraph or file")
    weight: float = Field(
        1.0, gt=0, le=100, description="how often each training document is packed; 1.5 packs half of them twice"
    )
    license: str | None = Field(None, description="licence of the text; it travels with each of its documents")
    filters: tuple[FilterConfig, ...] | None = Field(
        None, description="filters of this source, in place of corpus.filters; null for those"
    )
    name: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]{0,63}$",
        description="name in reports; without it, source0, source1, ... by position",
    )

    @property
    def columns(self) -> Columns:
        """The fields to read."""
        return Columns(text=self.text_column, id=self.id_column, license=self.license_column)


class NearDuplicatesConfig(FrozenConfig):
    """When two documents say the same."""

    similarity: float = Field(
        0.8, gt=0.3, lt=1, description="Jaccard similarity of their n-grams from which two documents are duplicates"
    )
    ngram_words: int = Field(5, ge=1, le=100, description="words of an n-gram; a Chinese character is a word")


class CorpusConfig(ReadingConfig):
    """Text to pretrain on."""

    sources: tuple[SourceConfig, ...] = Field(..., min_length=1, description="where the text comes from")
    collapse_whitespace: bool = Field(True, description="one space for a run of spaces; false for code and verse")
    cleaning: CleaningConfig = Field(
        default_factory=lambda: CleaningConfig.model_validate({}), description="repairs and masks of texts"
    )
    filters: tuple[FilterConfig, ...] = Field((), description="filters by name, run in this order on cleaned text")
    identify_language: bool = Field(
        False, description="tell the language of each document; a filter `language` does so for itself"
    )
    near_duplicates: NearDuplicatesConfig | None = Field(
        None,
        description="{} or more: documents that nearly equal an earlier one go; null: those of equal text alone",
    )
    decontamination: DecontaminationConfig | None = Field(
        default_factory=lambda: DecontaminationConfig.model_validate({}),
        description="how documents that overlap with an evaluation text are found; null: only those equal to one",
    )
    validation_fraction: float = Field(0.02, gt=0, lt=1, description="share of the documents held out, by text hash")
    sample_fraction: float = Field(1.0, gt=0, le=1, description="share of the documents to use, chosen by text hash")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.source_names()
        if len(set(names)) != len(names):
            raise ValueError(f"sources share a name: {', '.join(names)}; give each its own name")
        return self

    @property
    def licenses(self) -> str:
        """The licence of each source, one line."""
        stated = {source.license or f"not stated for {name}": None for name, source in self._named()}
        return "; ".join(stated)

    def _named(self) -> zip[tuple[str, SourceConfig]]:
        return zip(self.source_names(), self.sources, strict=True)

    def source_names(self) -> tuple[str, ...]:
        """The name of each source, in order: what `context.raw` is keyed by.

        A name that is not given is `source` and the position in the list, so that it, and the step's key, do not
        change when files move; they change when the sources are put in another order, and so may the corpus, for the
        earlier source keeps a text that both have.
        """
        return tuple(source.name or f"source{position}" for position, source in enumerate(self.sources))
