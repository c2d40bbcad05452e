"""Measures arms in turn: times, the peak of memory, and the bytes of keys and values held."""

import ctypes
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imprag.evaluation.speed_arms import Arm, Stamps

PROMPTS = tuple(
    f"Q: {question} A:"
    for question in (
        "what is the capital of Chad?",
        "what is the highest point of Peru?",
        "which currency is used in Norway?",
        "who is the head of government of Samoa?",
        "what is the internet country code of Laos?",
        "how many people live in Belgium?",
        "which languages are spoken in Cameroon?",
        "what are the natural resources of Mongolia?",
        "what is the national anthem of Fiji called?",
        "when did Ghana become independent?",
    )
)
WARM_UP = 2


@dataclass(frozen=True)
class Measurement:
    """One answer.

    Attributes:
        first_token: seconds from the prompt's text to the first new token.
        tokens_per_second: of the new tokens after the first.
        total: seconds to the last.
    """

    first_token: float
    tokens_per_second: float
    total: float


def measure(
    arms: Mapping[str, Arm], runs: int, what: str, failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Medians of every arm's runs.

    Args:
        arms: by their names.
        runs: of each, after those for warming up.
        what: is measured, for the progress bar.
        failed: is given the arms that fail, and why.
    """
    times: dict[str, list[Measurement]] = {name: [] for name in arms}
    with tqdm(desc=what, total=runs + WARM_UP, unit=" rounds", disable=None) as bar:
        for run in range(runs + WARM_UP):
            for name, arm in arms.items():
                if name in failed:
                    continue
                with failure_kept(name, failed):
                    one = _once(arm, PROMPTS[run % len(PROMPTS)])
                    if run >= WARM_UP:
                        times[name].append(one)
            bar.update()
    fields = [field.name for field in dataclasses.fields(Measurement)]
    measured = {}
    for name, found in times.items():
        if name in failed:
            continue
        with failure_kept(name, failed):
            measured[name] = {
                **{field: statistics.median(getattr(x, field) for x in found) for field in fields},
                "memory": _peak_growth(arms[name], PROMPTS[0]),
                "kv_bytes": arms[name].kv_bytes(PROMPTS[0]),
                "runs": runs,
            }
    return measured


@contextmanager
def failure_kept(arm: str, failed: dict[str, str]) -> Iterator[None]:
    """Note that an arm fails, for whatever reason, so that the others are still measured."""
    try:
        yield
    except Exception as error:
        failed[arm] = " ".join(str(error).split()) or type(error).__name__


def _once(arm: Arm, prompt: str) -> Measurement:
    stamps = Stamps()
    start = time.perf_counter()
    arm(prompt, stamps)
    end = time.perf_counter()
    first, *_, last = stamps.times
    return Measurement(
        first_token=first - start,
        tokens_per_second=(len(stamps.times) - 1) / (last - first),
        total=end - start,
    )


def _peak_growth(arm: Arm, prompt: str) -> int:
    """Bytes by which the resident set grows at most in one answer; 0 where the system does not say.

    What was freed before is given back to the system first, or it would be used again unseen. That
    makes an answer slower, so it is measured on its own.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (OSError, AttributeError):
        return 0
    before = _status("VmRSS")
    arm(prompt, Stamps())
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of an entry of the process's status; 0 where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)
