"""Reads recipes: YAML, ``extends`` and ``--set``, with errors in one line."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from imprag.errors import ImpRAGError
from imprag.io.files import expand_home
from imprag.training.architecture import num_layers
from imprag.training.recipe import Recipe
from imprag.training.removed_keys import drop_removed_keys
from imprag.training.trainer_arguments import DEFAULTS

EXTENDS = "extends"
_BUDGETS = {"steps", "epochs"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    ``extends: other.yaml``, relative to the recipe's folder, starts from another recipe: sections
    are merged key by key, lists and values replaced. ``train.steps`` and ``train.epochs`` replace
    each other, here and in overrides.

    Args:
        path: a YAML file. Relative paths in it are looked up in its folder, then in those of the
            recipes that it extends, then in the working folder.
        overrides: ``key=value`` with a dotted key and a value in YAML: ``model.k=5``,
            ``data.0.weight=2``, ``lora=null``.

    Raises:
        ImpRAGError: a file is missing or not YAML, or a key or value is invalid; the message gives
            the key and the value, and for an unknown or removed key what to write instead.
    """
    path = expand_home(path)
    content, folders = _read_chain(path)
    for override in overrides:
        key = apply_override(content, override)
        section, _, name = key.partition(".")
        if section == "train" and name in _BUDGETS:
            content[section].pop(*_BUDGETS - {name}, None)
    try:
        drop_removed_keys(content)
        # In JSON's strict mode, true is no number and 3 is no text, but lists become tuples.
        text = json.dumps(content, default=str)
        recipe = Recipe.model_validate_json(text, strict=True, context={"folders": folders})
        _check_layers(recipe)
    except ValidationError as error:
        raise ImpRAGError(f"{path}: {explain(error, Recipe)}") from error
    except ImpRAGError as error:
        raise ImpRAGError(f"{path}: {error}") from None
    return recipe


def _check_layers(recipe: Recipe) -> None:
    model = recipe.model
    layers = num_layers(model.base)
    if layers is not None and model.t >= layers:
        raise ImpRAGError(
            f"model: t={model.t}, but {model.base} has {layers} layers: t can be {layers - 1} at "
            "most"
        )


def _read_chain(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """The content of a recipe merged into the recipes that it extends, and all their folders.

    Args:
        path: the recipe.
        below: the recipes that extend it, its direct extension first.
    """
    content = read_yaml(path)
    try:
        drop_removed_keys(content)
    except ImpRAGError as error:
        raise ImpRAGError(f"{path}: {error}") from None
    other = content.pop(EXTENDS, None)
    if other is None:
        return content, [path.parent]
    if not isinstance(other, str):
        raise ImpRAGError(f"{path}: {EXTENDS} is {_short(other)}, but should be a recipe's path")
    place, chain = path.parent / Path(other).expanduser(), (path, *below)
    if place.resolve() in {each.resolve() for each in chain}:
        circle = " extends ".join(str(each) for each in (*reversed(chain), place))
        raise ImpRAGError(f"recipes extend each other in a circle: {circle}")
    base, folders = _read_chain(place, chain)
    return _merged(base, content), [path.parent, *folders]


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` changed by ``change``: mappings are merged, other values replaced."""
    if _BUDGETS & change.keys():
        base = {key: value for key, value in base.items() if key not in _BUDGETS}
    merged = {**base, **change}
    for key in base.keys() & change.keys():
        if isinstance(base[key], dict) and isinstance(change[key], dict):
            merged[key] = _merged(base[key], change[key])
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a recipe's file, not yet validated."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ImpRAGError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ImpRAGError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise ImpRAGError(f"{path} is not a recipe: expected keys such as model, corpus and data")
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-5 is a number and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' is given twice", node.start_mark
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
        raise ImpRAGError(
            f"--set {override}: the value is not valid YAML: {_one_line(error)}"
        ) from error
    try:
        place: Any = content
        for part in sections:
            index = _index(place, part)
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}  # a section that the file does not give
            place = place[index]
        place[_index(place, name)] = value
    except ImpRAGError as error:
        raise ImpRAGError(f"--set {override}: {error}") from None
    return ".".join(parts)


def _index(place: Any, part: str) -> Any:
    """A part of a dotted key as the key of a section or the index in a list."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise ImpRAGError(f"there is no '{part}' in {_short(place)}, which has no keys")
    if not part.isdecimal() or int(part) >= len(place):
        raise ImpRAGError(f"'{part}' should be a number from 0 to {len(place) - 1} in this list")
    return int(part)


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first error in one line; unknown keys come first, because they often cause others."""
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
    """The dotted key of a location, such as ``data.0.limit``, without the source's tag."""
    return ".".join(str(part) for part in location if not str(part).endswith(" source"))


def _nearest(unknown: str, schema: type[BaseModel]) -> str | None:
    """The known key closest to an unknown one: in its section, otherwise anywhere."""
    *parents, name = unknown.split(".")
    section = [*("*" if part.isdecimal() else part for part in parents)]
    keys = *_known_keys(schema), *(f"trainer.{name}" for name in DEFAULTS)
    known = [key.split(".") for key in keys]
    siblings = {key[-1] for key in known if key[:-1] == section}
    if found := difflib.get_close_matches(name, siblings, 1):
        return ".".join([*parents, found[0]])
    by_name = {key[-1]: key for key in known}
    found = difflib.get_close_matches(name, by_name, 1, 0.8)
    return ".".join(by_name[found[0]]) if found else None


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a section; ``*`` is any number in a list."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner, in_list in sections_of(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.{'*.' if in_list else ''}")


def sections_of(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections in a field's type, and whether each is in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        is_tuple = getattr(annotation, "__origin__", None) is tuple
        yield from sections_of(argument, in_list or is_tuple)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
