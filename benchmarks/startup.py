"""Seconds that commands take from their start to their end, each in a process of its own.

    python benchmarks/startup.py                 # 5 rounds, a minute and a half
    python benchmarks/startup.py --rounds 9 --json

The warm cache is the user's own, filled by a round that does not count; the empty one is a new
folder in each of ``--first`` rounds. A bare ``import torch, transformers`` runs in every round: no
command that uses a model takes less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

QUESTION = "what is the capital of Chad?"
IMPRAG = ("-m", "imprag")
COMMANDS: dict[str, Sequence[str]] = {
    "imports": ("-c", "import torch, transformers"),
    "help": (*IMPRAG, "--help"),
    "ask": (*IMPRAG, "ask", QUESTION),
    "search": (*IMPRAG, "search", QUESTION),
}


def seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds of one run of Python with these arguments."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], env=dict(environment), check=True, capture_output=True
    )
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=3, help="rounds with an empty cache")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)

    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(given.rounds + 1):
        for name, command in COMMANDS.items():
            took = seconds(command, os.environ)
            if number:
                times[name].append(took)
    times["first_answer"] = []
    for _ in range(given.first):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"IMPRAG_CACHE": folder}
            times["first_answer"].append(seconds(COMMANDS["ask"], environment))
    medians = {name: statistics.median(took) for name, took in times.items() if took}
    if given.json:
        print(json.dumps({"seconds": medians, "rounds": given.rounds, "first": given.first}))
        return
    for name, median in medians.items():
        print(f"{name:15s} {median:6.2f} s")


if __name__ == "__main__":
    main()
