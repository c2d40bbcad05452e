"""The disk cache: coded states of the passages that were read last, for all processes of a user."""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import safetensors.torch

from imprag.corpus import Passage
from imprag.corpus.passage import text_hashes
from imprag.io.file_cache import KV_SIZE, FileCache, kv_files
from imprag.kv_cache.cache import check_independent
from imprag.kv_cache.codecs.base import Codec, Parts, untrained_codec
from imprag.kv_cache.manifest import FORMAT_VERSION, states_fingerprint
from imprag.model.model import ImpRAGModel

CODEC = "int8"
_MOST_WAITING = 256  # passages; those beyond are not stored


class DiskCache:
    """A store of the passages that were read last, in a folder of bounded size.

    Models, corpora and processes share the folder: a passage is addressed by its title and text and
    by everything that its coded states depend on. A thread writes new passages while the prompt is
    answered, and Python waits for it at its exit. If the folder cannot be written, a note on
    standard error says so once, and answers go on.

    Args:
        model: the model that reads.
        tokenizer: its tokenizer.
        files: hold the passages; by default those of all commands, see
            :func:`~imprag.io.file_cache.kv_files`.

    Raises:
        ImpRAGError: the model's passages are not encoded independently.

    Attributes:
        codec: codes the states, in 8 bits.
        files: hold the passages.

    Example:
        >>> rag.use_kv_cache(DiskCache(rag.model, rag.tokenizer))  # doctest: +SKIP
    """

    def __init__(self, model: ImpRAGModel, tokenizer: Any, files: FileCache | None = None) -> None:
        check_independent(model)
        self.codec = untrained_codec(CODEC, model.decoder.head_dim)
        self.files = kv_files() if files is None else files
        self._origin = _origin(model, tokenizer, self.codec)
        self._waiting: dict[str, Parts] = {}  # for the writer, by address
        self._lock = threading.Lock()  # of what waits
        self._writer = ThreadPoolExecutor(1, "imprag-disk-cache")
        self._noted = False

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        """The parts of each passage, which becomes the most recently used."""
        return [self._get(address) for address in self._addresses(passages)]

    def put(self, passage: Passage, parts: Parts) -> None:
        """Write parts, soon."""
        (address,) = self._addresses([passage])
        with self._lock:
            if len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting[address] = parts
        with contextlib.suppress(RuntimeError):  # Python exits: what comes now is not stored
            self._writer.submit(self._write)

    def flush(self) -> None:
        """Wait until all parts are written."""
        self._writer.submit(self._write).result()

    def _get(self, address: str) -> Parts | None:
        with self._lock:
            if address in self._waiting:
                return self._waiting[address]
        content = self.files.read(address)
        return None if content is None else safetensors.torch.load(content)

    def _addresses(self, passages: Sequence[Passage]) -> list[str]:
        return [
            hashlib.sha256(self._origin + one.tobytes()).hexdigest()
            for one in text_hashes(passages)
        ]

    def _write(self) -> None:
        """Write everything that waits."""
        with self._lock:
            batch = dict(self._waiting)
        try:
            if batch:
                self.files.write(_contents(batch))
        except Exception as error:
            self._note(error)
        finally:
            with self._lock:
                for address in batch:
                    del self._waiting[address]

    def _note(self, error: Exception) -> None:
        if not self._noted:
            self._noted = True
            reason = getattr(error, "strerror", None) or error
            print(
                f"note: cannot write the KV cache {self.files.folder} ({reason}); passages are "
                f"encoded again when they are read again. {KV_SIZE}=0 turns this cache off",
                file=sys.stderr,
            )


def _contents(batch: Mapping[str, Parts]) -> Iterator[tuple[str, bytes]]:
    """The files of parts, made one by one."""
    for address, parts in batch.items():
        plain = {name: part.cpu().contiguous() for name, part in parts.items()}
        yield address, safetensors.torch.save(plain)


def _origin(model: ImpRAGModel, tokenizer: Any, codec: Codec) -> bytes:
    """Names everything but the passage that coded states depend on."""
    learned = safetensors.torch.save(codec.state())
    depends = {
        "states": states_fingerprint(model, tokenizer),
        "dtype": str(model.lm.dtype),
        "device": model.device.type,
        "codec": [codec.name, codec.head_dim, hashlib.sha256(learned).hexdigest()],
        "format": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).digest()
