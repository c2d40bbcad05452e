"""The schema of a recipe's sources of training examples, and the base class of all sections."""

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
    """Resolve a path in the recipes' folders, then in the working folder; keep other names."""
    value = str(expand_home(value)) if value.startswith("~") else value
    folders = (info.context or {}).get("folders")
    if folders is not None and value not in BUILT_IN_CORPORA:
        for place in (*(Path(folder) / value for folder in folders), Path(value)):
            if place.exists():
                return str(place.resolve())
    return value


Location = Annotated[str, AfterValidator(locate)]
"""A path, or a name: built-in or on the hub."""


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys.

    The string under a field documents it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TaskSource(Section):
    """Training examples of one task (paper, section 3)."""

    tasks: Location
    """Location of the examples: a benchmark folder made by `imprag tasks build`, a file, or a data
    set on the Hugging Face hub."""

    task: str
    """The task's name, as `imprag tasks list` shows it. It decides the prompt and whether passages
    are retrieved."""

    split: str = "train"
    """Split of a benchmark or of a set on the hub; files have none."""

    weight: PositiveFloat = 1.0
    """Share of the source in the mixture, relative to the other sources' weights. With
    `batch.grid`, sources that fill grids and the other sources are weighted separately."""

    limit: PositiveInt | None = None
    """Uses at most this many examples, sampled by the seed (paper: 5,000 of each set). By default
    all are used."""

    positives: Literal["teacher", "gold", "hops"] = "teacher"
    """The source of positives: the passages that the `teacher` ranks first (paper), or `gold`, the
    provenance of the examples. Use `gold` if the examples have provenance (beyond the paper).
    `hops` is `gold` for two-hop questions whose response names the bridge first, as in
    "Nepal ; 8,849 m": the first passage of an answer's provenance is the positive of the prompt,
    the second one that of the query at the separator, which `model.retrieve` names. Unless the
    task knows the bridge, the `meta` of each example needs a text `bridge_answer`."""

    prompt_templates: tuple[str, ...] = ()
    """More prompt templates with `{input}`; examples alternate between these and the task's own.
    By default there are none. Give several if users phrase prompts differently: a model trained on
    one form of prompt retrieves poorly for others (beyond the paper)."""

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
    """Kind of examples. The paper's `phrase_denoising`, `sentence_generation` and plain
    `corpus_text` (about a tenth of training) do not retrieve. The other kinds retrieve the passage
    that an example is made from, and so teach retrieval without labels (beyond the paper)."""

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
