"""The first use of the built-in model: its corpus is made while the model is converted."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from imprag.cli import imports

_MAKE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes what was begun
from imprag.corpus import load_corpus
load_corpus("default")
"""
_PATIENCE = 5.0  # seconds in which it may do so


@contextlib.contextmanager
def corpus_meanwhile(model: str, index: Path | None, k: int | None) -> Iterator[None]:
    """Make the built-in corpus in another process, if the model needs it and it is not there.

    Both take seconds of one core. What fails there fails again, with its message, where the corpus
    is used. The process imports nothing from the working folder.

    Args:
        model: its name, as ``--model``.
        index: as ``--index``.
        k: as ``--k``.
    """
    from imprag.corpus.library import built_in_folder

    needed = imports.own_process and model == "default" and index is None and k != 0
    if not needed or built_in_folder("default").exists():
        yield
        return
    silent = subprocess.DEVNULL
    try:
        making = subprocess.Popen([sys.executable, "-P", "-c", _MAKE], stdout=silent, stderr=silent)
    except OSError:
        yield
        return
    try:
        yield
        making.wait()
    except BaseException:
        making.terminate()
        raise
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            making.wait(_PATIENCE)
        making.kill()
