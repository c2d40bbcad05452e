"""Progress bars over passages."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(what: str, total: int, shown: bool, done: int = 0) -> "tqdm[Any]":
    """A progress bar over passages on standard error; seldom renewed where that is a log file."""
    return tqdm(
        desc=what,
        total=total,
        initial=done,
        unit=" passages",
        disable=not shown,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
