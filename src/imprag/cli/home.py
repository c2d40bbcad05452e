"""``~`` in options, which a shell does not expand within quotation marks and in ``--out=~/x``."""

import os
from typing import Any

import cyclopts


def expand_home(
    app: cyclopts.App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection
) -> None:
    """Expand a leading ``~`` of every value, also after ``NAME=``, to the home directory.

    A hook for the setting ``config`` of :class:`cyclopts.App`. Prompts are not changed.
    """
    for argument in arguments:
        if argument.field_info.name != "prompt":
            argument.tokens[:] = [_expanded(token) for token in argument.tokens]


def _expanded(token: Any) -> Any:
    name, equals, value = token.value.rpartition("=")
    expanded = os.path.expanduser(value if "~" in value else token.value)
    if equals and "~" in value:
        expanded = f"{name}={expanded}"
    return token.evolve(value=expanded)
