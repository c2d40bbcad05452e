"""What figures depend on besides the code: the commit, the shipped model, the machine, the date."""

import datetime
import hashlib
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import faiss
import torch
import transformers
from safetensors import safe_open

from encode import matmul_rate
from imprag.model.adapter import SETTINGS, WEIGHTS
from imprag.model.config import CONFIG_NAME
from imprag.model.load import DEFAULT_FOLDER

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_SMALL = 256  # rows and columns
_EMULATED = 5e9  # operations in a second, which every processor exceeds that knows the dtype
_READ = 1 << 28  # bytes, which are more than fit any cache


def origin(*, times: bool = False) -> dict[str, Any]:
    """Commit, fingerprint of the shipped model, machine and date, for a file of results.

    Args:
        times: as for :func:`fingerprint`.
    """
    return {
        "commit": commit(),
        **fingerprint(times=times),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def fingerprint(*, times: bool) -> dict[str, str]:
    """The shipped model, as far as figures depend on it.

    Args:
        times: whether they are times of a fixed amount of work, which are the same with other
            weights of the same sizes.
    """
    if times:
        return {"sizes_fingerprint": sizes_fingerprint()}
    return {"model_fingerprint": answering_fingerprint()}


def answering_fingerprint() -> str:
    """Fingerprint of all in the shipped model that answers depend on.

    Its confidence judges answers that are complete, so it is left out.
    """
    parts = [(DEFAULT_FOLDER / name).read_bytes() for name in (SETTINGS, WEIGHTS)]
    return _fingerprint(*parts, _settings("confidence"))


def sizes_fingerprint() -> str:
    """Fingerprint of all in the shipped model that times depend on.

    These are the settings, and the names, sizes and types of the weights, not their values.
    """
    adapter = json.loads((DEFAULT_FOLDER / SETTINGS).read_text(encoding="utf-8"))
    del adapter["alpha_pattern"]  # the scales of 8-bit weights
    with safe_open(DEFAULT_FOLDER / WEIGHTS, "pt") as weights:
        sizes = [
            [name, part.get_shape(), str(part.get_dtype())]
            for name in sorted(weights.keys())
            for part in [weights.get_slice(name)]
        ]
    return _fingerprint(json.dumps([adapter, sizes]).encode(), _settings("confidence", "gate"))


def _settings(*left_out: str) -> bytes:
    """The shipped model's settings but some."""
    settings = json.loads((DEFAULT_FOLDER / CONFIG_NAME).read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in left_out}
    return (json.dumps(kept, indent=2) + "\n").encode()


def _fingerprint(*parts: bytes) -> str:
    key = hashlib.sha256()
    for part in parts:
        key.update(part)
    return key.hexdigest()[:12]


def commit() -> str:
    """The last commit that changed what is measured, with a mark if there are later changes."""
    code = ("src", ":(glob)benchmarks/*.py")

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = "+changes" if git("status", "--porcelain") else ""
    return (git("log", "-1", "--format=%H")[:12] or "unknown") + changed


def machine() -> dict[str, Any]:
    """The processor, what it can do, and the versions of libraries."""
    return {
        "cpu": _cpu("model name") or platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "instructions": [one for one in INSTRUCTIONS if one in _cpu("flags").split()],
        "gflops_float32": product_rate(torch.float32) / 1e9,
        "gflops_bfloat16": product_rate(torch.bfloat16) / 1e9,
        "memory_gb_per_second": memory_rate() / 1e9,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "faiss": faiss.__version__,
        },
    }


def product_rate(dtype: torch.dtype) -> float:
    """Operations in a second of a large matrix product; of a small one where it is emulated."""
    matrix = torch.ones(_SMALL, _SMALL, dtype=dtype)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    rate = 2 * _SMALL**3 / (time.perf_counter() - start)
    return rate if rate < _EMULATED else matmul_rate(dtype)


def memory_rate() -> float:
    """Bytes of memory that are read in a second, by the sum of a large tensor."""
    numbers = torch.ones(_READ // 4)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return numbers.nbytes / min(seconds)


def _cpu(name: str) -> str:
    """An entry of the first processor; empty where the system has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
