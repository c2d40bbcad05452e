"""Registries: objects of one kind by name, ImpRAG's own and those that others add."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Generic, TypeVar, cast

from imprag.errors import ImpRAGError
from imprag.io.plugins import load_plugin, offered

T = TypeVar("T")
Item = TypeVar("Item")


class Registry(Generic[T]):
    """Objects by name; each is imported when it is first asked for.

    Others add objects in two ways: with the decorator :meth:`register`, for the process that runs
    it, or under an entry-point group of an installed package, for every process.

    Args:
        what: the objects are, for messages: "retriever".
        group: the entry-point group.
        own: ImpRAG's objects, as ``module:attribute``, by their names.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, str]) -> None:
        self.what = what
        self.group = group
        self._own = {name: EntryPoint(name, place, group) for name, place in own.items()}
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """Decorator: makes an object known under a name. Running its module again replaces it.

        Raises:
            ImpRAGError: another object has the name.
        """

        def keep(item: Item) -> Item:
            known = self._registered.get(name)
            again = known is None or known == item or _place(known) == _place(item)
            if name in self._own or not again:
                raise self._taken(name)
            self._registered[name] = cast(T, item)
            return item

        return keep

    def find(self, name: str) -> T:
        """The object of that name.

        Raises:
            ImpRAGError: there is none (the message lists the known names and tells how to add
                more), two have the name, or the package that offers it cannot be imported.
        """
        others = offered(self.group)
        if name in self._own and name in others:
            raise self._taken(name)
        point = self._own.get(name) or others.get(name)
        # Its module may register it, too, once it is imported.
        loaded: T | None = None if point is None else load_plugin(point)
        found = self._registered.get(name, loaded)
        if found is None:
            raise self.unknown(name)
        if loaded is not None and _place(found) != _place(loaded):
            raise self._taken(name)
        return found

    def names(self) -> list[str]:
        """All known names: ImpRAG's own first, the others sorted."""
        others = {*self._registered, *offered(self.group)}
        return [*self._own, *sorted(others.difference(self._own))]

    def unknown(self, name: str) -> ImpRAGError:
        """The error for a name that nothing has; it lists the known ones."""
        return ImpRAGError(
            f"unknown {self.what} '{name}'; known are {', '.join(self.names()) or 'none'} "
            f"(packages add others under the entry-point group {self.group})"
        )

    def _taken(self, name: str) -> ImpRAGError:
        return ImpRAGError(
            f"there are two {self.what}s named '{name}'; rename the one that is registered by a "
            f"decorator or under the entry-point group {self.group}"
        )


def _place(item: object) -> tuple[str | None, str]:
    """Where an object was defined, which stays the same when its module runs again."""
    return getattr(item, "__module__", None), getattr(item, "__qualname__", str(id(item)))
