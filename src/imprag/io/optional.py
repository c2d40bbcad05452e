"""Optional packages: checked before the work begins."""

import sys
from functools import cache
from importlib.util import find_spec

from imprag.errors import ImpRAGError


def missing(*packages: str) -> list[str]:
    """The packages, by their import names, that are not installed."""
    return [name for name in packages if not _is_installed(name)]


def require(what: str, extra: str, *packages: str) -> None:
    """Refuse to begin work that needs a missing package.

    Args:
        what: the work, in words for the message.
        extra: ImpRAG's extra that installs the packages.
        packages: their import names.

    Raises:
        ImpRAGError: a package is not installed; the message says how to install it.
    """
    if lacking := missing(*packages):
        raise ImpRAGError(f"{what} needs {_listed(lacking)}; run: {install(extra)}")


@cache  # once for each process
def note_without(what: str, extra: str, *packages: str) -> None:
    """Say on standard error, before the work begins, what it will leave out.

    Args:
        what: the part that needs the packages, in words.
        extra: ImpRAG's extra that installs the packages.
        packages: their import names.
    """
    if lacking := missing(*packages):
        names, verb = _listed(lacking), "is" if len(lacking) == 1 else "are"
        print(
            f"note: there will be no {what}, because {names} {verb} not installed; "
            f"for these: {install(extra)}",
            file=sys.stderr,
        )


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "imprag[{extra}]"'


def _listed(names: list[str]) -> str:
    return " and ".join(name.replace("_", "-") for name in names)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a parent package is missing, or the module is half loaded
        return False
