"""Reading a recipe's YAML and ``--set``, and saying in one line what is wrong with it."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from imprag.errors import ImpRAGError


class Removed(NamedTuple):
    """A key that recipes no longer have.

    Attributes:
        key: dotted; ``*`` stands for the number in a list.
        default: the value that every recipe now has, which old files may still state.
        advice: what to write instead of another value.
    """

    key: str
    default: Any
    advice: str


REMOVED = (
    Removed(
        "model.start_share",
        0.0,
        "interpolate saved weights after the run, or fit queries by imprag adapt --start-share",
    ),
    Removed(
        "data.*.retrieval", None, "passages are retrieved for a task's prompts if the task says so"
    ),
    Removed("batch.answer_check", True, "a passage that contains an answer is never a negative"),
    Removed("batch.same_passage", 0, "use batch.questions_per_passage"),
    Removed("batch.about_candidates", 0, "it is now called batch.questions_per_passage"),
    Removed(
        "stages.warmup.score_distillation",
        None,
        "the labels of the teacher's ranks (teacher.positives) gave better results",
    ),
)


def drop_removed_keys(content: dict[str, Any]) -> None:
    """Delete keys that recipes no longer have where they hold the value that is left, in place.

    Raises:
        ImpRAGError: one holds another value; the message names what replaces it.
    """
    for removed in REMOVED:
        *sections, name = removed.key.split(".")
        for place, section in _sections_at(content, sections):
            if name not in section:
                continue
            value = section.pop(name)
            if value != removed.default:
                key = ".".join([*place, name])
                raise ImpRAGError(f"{key} (value {_short(value)}) was removed: {removed.advice}")


def _sections_at(
    content: Any, sections: Sequence[str], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The sections that a dotted key leads to, with their own keys."""
    if not sections:
        if isinstance(content, dict):
            yield place, content
        return
    first, *rest = sections
    if first == "*":
        for number, item in enumerate(content if isinstance(content, list) else []):
            yield from _sections_at(item, rest, (*place, str(number)))
    elif isinstance(content, dict) and first in content:
        yield from _sections_at(content[first], rest, (*place, first))


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a recipe's file, unchecked."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ImpRAGError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ImpRAGError(f"{path} is no YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise ImpRAGError(f"{path} is no recipe: expected keys such as model, corpus and data")
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-5 is a number, as people mean it, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def apply_override(content: dict[str, Any], override: str) -> str:
    """Apply one ``key=value`` to the content of a recipe; returns the key."""
    key, equals, text = override.partition("=")
    *sections, name = parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ImpRAGError(f"--set {override}: expected key=value, such as --set model.k=5")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ImpRAGError(f"--set {override}: the value is no YAML: {_one_line(error)}") from error
    try:
        place: Any = content
        for part in sections:
            index = _index(place, part)
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}  # a section that the file leaves to its defaults
            place = place[index]
        place[_index(place, name)] = value
    except ImpRAGError as error:
        raise ImpRAGError(f"--set {override}: {error}") from None
    return ".".join(parts)


def _index(place: Any, part: str) -> Any:
    """What a part of a dotted key means in a section or list."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise ImpRAGError(f"'{part}' is looked for in {_short(place)}, which has no keys")
    if not part.isdecimal() or int(part) >= len(place):
        raise ImpRAGError(f"'{part}' is no number in a list from 0 to {len(place) - 1}")
    return int(part)


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake in one line; unknown keys first, for they often cause the others."""
    errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    key, value = _dotted(first["loc"]), first["input"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        nearest = _nearest(key, schema)
        advice = f"; did you mean {nearest}?" if nearest else ""
        return f"unknown key {key} (value {_short(value)}){advice}{more}"
    if first["type"] == "missing":
        return f"{key} is missing{more}"
    if first["type"] == "value_error":
        return f"{key + ': ' if key else ''}{first['ctx']['error']}{more}"
    message = first["msg"].removeprefix("Input ").replace("Tuple", "list").replace("array", "list")
    return f"{key} is {_short(value)}, but {message[:1].lower()}{message[1:]}{more}"


def _dotted(location: tuple[int | str, ...]) -> str:
    """``data.0.limit``; pydantic puts the kind of the source in between."""
    return ".".join(str(part) for part in location if not str(part).endswith(" source"))


def _nearest(unknown: str, schema: type[BaseModel]) -> str | None:
    """The known key that is most like an unknown one: in its section, else anywhere."""
    *parents, name = unknown.split(".")
    section = [*("*" if part.isdecimal() else part for part in parents)]
    known = [key.split(".") for key in _known_keys(schema)]
    siblings = {key[-1] for key in known if key[:-1] == section}
    if found := difflib.get_close_matches(name, siblings, 1):
        return ".".join([*parents, found[0]])
    by_name = {key[-1]: key for key in known}
    found = difflib.get_close_matches(name, by_name, 1, 0.8)
    return ".".join(by_name[found[0]]) if found else None


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a section; ``*`` stands for the number in a list."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner, in_list in _sections_of(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.{'*.' if in_list else ''}")


def _sections_of(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        is_tuple = getattr(annotation, "__origin__", None) is tuple
        yield from _sections_of(argument, in_list or is_tuple)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
