"""Generates the reference page of recipe keys from their schema.

Regenerate it with ``python -m imprag.training.reference > docs/reference/recipe.md``.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imprag.training.recipe import Recipe
from imprag.training.recipe_file import sections_of
from imprag.training.trainer_arguments import DEFAULTS

_INTRODUCTION = """\
# Recipe keys

<!-- Made by `python -m imprag.training.reference` from the fields in src/imprag/training. -->

A recipe is a YAML file with the sections below; `configs/` holds examples, and
[training](../guides/training.md) explains how they work together. `imprag train --set KEY=VALUE`
changes a key, such as `--set model.k=5 train.steps=100`. "Paper" is arXiv 2506.02279; what is
marked "beyond the paper" is off unless a recipe asks for it.

`extends: other.yaml`, a path relative to the recipe's folder, starts from another recipe: sections
are merged key by key, lists and values replaced. A run folder's `recipe.yaml` is the result, with
every key.
"""

_TRAINER = """\
Other arguments of
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments)
can be given, too. ImpRAG's defaults are:
"""

_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def page() -> str:
    """The reference page in Markdown."""
    parts = [_INTRODUCTION]
    for name, field in Recipe.model_fields.items():
        sections = dict.fromkeys(section for section, _ in sections_of(field.annotation))
        if not sections:
            parts += [f"## {name}\n", f"{_text(field)}\n"]
            if name == "trainer":
                rows = ([f"`trainer.{key}`", _value(value)] for key, value in DEFAULTS.items())
                parts += [_TRAINER, _table(["key", "default"], rows)]
            else:
                parts.append(f"Default: {_default(field)}\n")
            continue
        parts.append(f"## {name}\n")
        for section in sections:
            prefix = f"{name}.*" if get_origin(field.annotation) is tuple else name
            parts += _section(section, prefix)
    return "\n".join(parts)


def _section(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The description of a section, a table of its keys, then its inner sections."""
    yield _prose(section.__doc__) + "\n"
    rows: list[list[str]] = []
    within: dict[type[BaseModel], list[str]] = {}
    for name, field in section.model_fields.items():
        inner = [found for found, _ in sections_of(field.annotation)]
        if inner:
            is_list = get_origin(field.annotation) is tuple
            key = f"{prefix}.{name}.*" if is_list else f"{prefix}.{name}"
            within.setdefault(inner[0], []).append(key)
        if not inner or field.description:
            values = "list" if inner else _values(field.annotation)
            rows.append([f"`{prefix}.{name}`", values, _default(field), _text(field)])
    if rows:
        yield _table(["key", "values", "default", "what it does"], rows)
    for inner_section, keys in within.items():
        yield "### " + ", ".join(f"`{key}`" for key in keys) + "\n"
        yield from _section(inner_section, keys[0] if len(keys) == 1 else f"{prefix}.GROUP")


def _values(annotation: Any) -> str:
    """The values that a key accepts, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is Annotated:
        return _values(arguments[0])
    if origin is dict:
        return "section"
    if origin is tuple:
        inner = [each for each in arguments if each is not ...]
        count = "list of " if ... in arguments else f"{len(inner)} × "
        return count + _values(inner[0])
    given = [each for each in arguments if each is not type(None)]
    return " or ".join(dict.fromkeys(_values(each) for each in given))


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _value(field.default)


def _value(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ", ".join(_value(each) for each in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value!r}`" if isinstance(value, str) and "\n" in value else f"`{value}`"


def _text(field: FieldInfo) -> str:
    return _prose(field.description)


def _prose(text: str | None) -> str:
    """A docstring in one line."""
    return " ".join((text or "").split())


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    print(page(), end="")
