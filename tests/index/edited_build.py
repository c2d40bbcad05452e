"""Kills rebuilds of an edited corpus at every fourth change that they make to the file system.

Usage: edited_build.py FOLDER. Prints a JSON list with what each kill left.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}
OLD, NEW = "the old text", "the new text"


class Encoder:
    """Embeds a passage by the length of its text."""

    dimension = 4

    def fingerprint(self) -> str:
        return "model-one"

    def __call__(self, passages):
        return np.array([[len(one.text), 1, 2, 3] for one in passages], np.float32)


def build(corpus: Corpus, path: Path, **settings) -> IndexFolder:
    return IndexFolder.build(corpus, Encoder(), path, shard_size=2, progress=False, **settings)


def killed_at(change: int, corpus: Corpus, path: Path) -> bool:
    """Whether a rebuild was killed at its n-th change of the file system, or ended before."""
    child = os.fork()
    if not child:
        made = 0

        def kill(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal made
            if event not in CHANGES:
                return
            made += 1
            if made > change:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        build(corpus, path, overwrite=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def outcome(action) -> str:
    """The text that an action finds, or that it refused."""
    try:
        return action().corpus[0].text
    except ImpRAGError:
        return "refused"


def main(folder: Path) -> None:
    old, new = (
        Corpus.build([Passage(f"p{n}", "", text) for n in range(5)], folder / text)
        for text in (OLD, NEW)
    )
    found = []
    for change in range(0, 1000, 4):
        path = folder / f"index-{change}"
        build(old, path)
        if not killed_at(change, new, path):
            break
        found.append(
            {
                "opened": outcome(lambda path=path: IndexFolder.open(path)),
                "built": outcome(lambda path=path: build(new, path)),
                "rebuilt": outcome(lambda path=path: build(new, path, overwrite=True)),
            }
        )
        shutil.rmtree(path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
