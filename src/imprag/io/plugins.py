"""Plug-ins: objects that installed packages, ImpRAG included, offer in an entry-point group."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from imprag.errors import ImpRAGError


@cache
def plugins(group: str) -> Mapping[str, Any]:
    """The objects of an entry-point group, such as ``imprag.tasks``, by name.

    Raises:
        ImpRAGError: two packages offer the same name, or one cannot be imported.
    """
    found: dict[str, Any] = {}
    for point in entry_points(group=group):
        if point.name in found:
            raise ImpRAGError(
                f"two installed packages offer '{point.name}' under the entry-point group {group}; "
                f"one of them is {_package(point)}: uninstall it or the other one"
            )
        try:
            found[point.name] = point.load()
        except ImpRAGError:
            raise
        except Exception as error:  # the plug-in's own code: it may raise anything
            raise ImpRAGError(
                f"the plug-in '{point.name}' ({group}) of the package {_package(point)} cannot be "
                f"imported: {error}; update or uninstall it"
            ) from error
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
