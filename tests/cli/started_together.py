"""Starts three processes of each command at once on an empty cache; prints their exit codes.

Usage: started_together.py FOLDER, with a model in FOLDER/model and a corpus in FOLDER/corpus.jsonl.
The processes are forked from this one, so that libraries are loaded only once.
"""

import json
import os
import sys
import time
from pathlib import Path

import imprag.kv_cache.build  # noqa: F401
from imprag.cli import main
from imprag.pipeline import ImpRAG


def together(home: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit codes and what was printed, of three processes with the same arguments."""
    begin = time.time() + 0.2
    children = []
    for number in range(3):
        outputs = [home / f"{arguments[0]}-{number}.{stream}" for stream in ("out", "err")]
        child = os.fork()
        if not child:
            for descriptor, path in enumerate(outputs, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            time.sleep(max(0.0, begin - time.time()))
            code = 1
            try:
                code = main(list(arguments))
                sys.stdout.flush()
            finally:
                os._exit(code)
        children.append((child, outputs))
    return [
        (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *(one.read_text() for one in outputs))
        for child, outputs in children
    ]


def run(home: Path) -> None:
    ImpRAG.from_pretrained(home / "model", dtype="float32")  # imports what is imported late
    model = ("--model", str(home / "model"), "--dtype", "float32")
    index, memory = str(home / "index"), str(home / "mem")
    print(
        json.dumps(
            {
                "index": together(
                    home, "index", str(home / "corpus.jsonl"), *model, "--out", index
                ),
                "memory": together(home, "kv", "build", *model, "--index", index, "--out", memory),
                "ask": together(
                    home, "ask", "w1 w2", "--json", *model, "--index", index, "--kv-cache", memory
                ),
            }
        )
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]))
