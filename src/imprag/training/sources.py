"""The schema of a recipe's training examples, and what all parts of the schema share."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    model_validator,
)

from imprag.corpus.library import BUILT_IN_CORPORA
from imprag.io.files import expand_home
from imprag.tasks import load_task


def locate(value: str, info: ValidationInfo) -> str:
    """A path seen from the recipes' folders, else from the working folder; names stay names."""
    value = str(expand_home(value)) if value.startswith("~") else value
    folders = (info.context or {}).get("folders")
    if folders is not None and value not in BUILT_IN_CORPORA:
        for place in (*(Path(folder) / value for folder in folders), Path(value)):
            if place.exists():
                return str(place.resolve())
    return value


Location = Annotated[str, AfterValidator(locate)]
"""A path, or a name that is known to who reads it: a built-in one or one on the hub."""


class Section(BaseModel):
    """A part of a recipe: immutable, with no key that it does not know.

    The string under a field documents it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TaskSource(Section):
    """Training examples of one task (paper, section 3)."""

    tasks: Location
    """Where the examples are: a benchmark folder made by `imprag tasks build`, a file, or a data
    set on the Hugging Face hub."""

    task: str
    """The task's name, as `imprag tasks list` shows it. It decides the prompt and whether passages
    are retrieved."""

    split: str = "train"
    """Split of a benchmark or of a set on the hub; files have none."""

    weight: PositiveFloat = 1.0
    """Share of the source in the mixture, relative to the other sources' weights. For batches with
    a `grid`, sources that fill grids and the others are weighed apart."""

    limit: PositiveInt | None = None
    """Uses at most this many examples, drawn by the seed (paper: 5,000 of each set). By default all
    are used."""

    positives: Literal["teacher", "gold"] = "teacher"
    """Which passages are positives: those that the `teacher` ranks first (paper), or `gold`, the
    provenance that the examples state. Use `gold` where there is provenance (beyond the paper)."""

    prompt_templates: tuple[str, ...] = ()
    """Further prompt templates with `{input}`, which take turns with the task's own. A retriever
    trained on one form of prompt finds little for others (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        replace(load_task(self.task), prompt_templates=self.prompt_templates)
        return self

    @property
    def retrieves(self) -> bool:
        """Whether passages are retrieved for these examples."""
        return load_task(self.task).retrieval


Synthetic = Literal[
    "phrase_denoising",
    "sentence_generation",
    "corpus_text",
    "cloze",
    "lookup",
    "question",
    "assertion",
    "keywords",
    "title",
    "mention",
    "statement",
]


class SyntheticSource(Section):
    """Examples made from the passages of the corpus (paper, section 3)."""

    synthetic: Synthetic
    """What is made: the paper's `phrase_denoising` and `sentence_generation` and its plain
    `corpus_text` (about a tenth of training) retrieve nothing. The others retrieve the passage that
    they are made from, so they teach retrieval without labels (beyond the paper)."""

    corpus: Location | None = None
    """Makes the examples from this one of the recipe's corpora. By default all are used."""

    weight: PositiveFloat = 1.0
    """As for a task."""

    limit: PositiveInt | None = None
    """As for a task."""

    @property
    def retrieves(self) -> bool:
        """Whether passages are retrieved for these examples."""
        return load_task(self.synthetic).retrieval


def _source_kind(value: Any) -> str:
    synthetic = "synthetic" in value if isinstance(value, Mapping) else hasattr(value, "synthetic")
    return "synthetic source" if synthetic else "task source"


Source = Annotated[
    Annotated[TaskSource, Tag("task source")] | Annotated[SyntheticSource, Tag("synthetic source")],
    Discriminator(_source_kind),
]
