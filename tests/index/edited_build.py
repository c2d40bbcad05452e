"""Kills rebuilds or updates to an edited corpus at every fourth change of the file system.

Usage: edited_build.py FOLDER rebuild|update. Prints a JSON list with what each kill left.
"""

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.update import update_index

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


def update(corpus: Corpus, path: Path) -> IndexFolder:
    return update_index(path, corpus, Encoder(), progress=False).folder


def killed_at(change: int, action) -> bool:
    """Whether an action was killed at its n-th change of the file system, or ended before."""
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
        action()
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


def main(folder: Path, how: str) -> None:
    old, between, new = (
        Corpus.build([Passage(f"p{n}", "", text) for n in range(5)], folder / text)
        for text in (OLD, "the text between", NEW)
    )
    found = []
    before = folder / "before"
    build(old, before)
    if how == "update":  # so that there are states before the one to replace
        update(between, before)
        update(old, before)
    for change in range(0, 1000, 4):
        path = folder / f"index-{change}"
        shutil.copytree(before, path, symlinks=True)
        rebuild = partial(build, overwrite=True) if how == "rebuild" else update
        if not killed_at(change, partial(rebuild, new, path)):
            break
        found.append(
            {
                "opened": outcome(lambda path=path: IndexFolder.open(path)),
                "built": outcome(lambda path=path: build(new, path)),
                "rebuilt": outcome(partial(rebuild, new, path)),
                "reopened": outcome(lambda path=path: IndexFolder.open(path)),
                "left": sorted(one.name for one in (path / "states").glob("*")),
            }
        )
        shutil.rmtree(path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
