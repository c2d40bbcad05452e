"""Plug-ins: objects that installed packages, ImpRAG included, offer in an entry-point group."""

import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from imprag.errors import ImpRAGError


@cache
def plugins(group: str) -> Mapping[str, Any]:
    """The objects of an entry-point group, such as ``imprag.tasks``, by name.

    Raises:
        ImpRAGError: two packages offer the same name, or one cannot be imported.
    """
    return {name: load_plugin(point) for name, point in offered(group).items()}


def offered(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by their names; nothing is imported.

    Raises:
        ImpRAGError: two packages offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in _entry_points(group, tuple(sys.path)):
        if point.name in found:
            raise ImpRAGError(
                f"two installed packages offer '{point.name}' under the entry-point group {group}; "
                f"one of them is {_package(point)}: uninstall it or the other one"
            )
        found[point.name] = point
    return found


@lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """The group's entry points of all packages on a path; finding them takes milliseconds."""
    return entry_points(group=group)


def load_plugin(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        ImpRAGError: it cannot be imported.
    """
    try:
        return point.load()
    except ImpRAGError:
        raise
    except Exception as error:  # the plug-in's own code: it may raise anything
        raise ImpRAGError(
            f"the plug-in '{point.name}' ({point.group}) of the package {_package(point)} cannot "
            f"be imported: {error}; update or uninstall it"
        ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
