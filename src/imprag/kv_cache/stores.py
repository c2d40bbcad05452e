"""Stores of coded passage states: in RAM, as many as fit, or in the files of a folder."""

import itertools
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from imprag.corpus import Passage
from imprag.corpus.passage import TEXT_HASH, KnownTexts, text_of
from imprag.io.building import damaged
from imprag.io.files import expand_home
from imprag.kv_cache.codecs.base import (
    RESERVED_PARTS,
    Codec,
    Parts,
    check_kv_keep_ratio,
    untrained_codec,
)
from imprag.kv_cache.manifest import KVCacheManifest


class Store(Protocol):
    """Coded states by passage.

    Attributes:
        codec: codes the states.
        kv_keep_ratio: the share of a passage's tokens that is stored.
    """

    @property
    def codec(self) -> Codec: ...

    @property
    def kv_keep_ratio(self) -> float: ...

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        """The parts of each passage, None where it is not stored."""

    def put(self, passage: Passage, parts: Parts) -> None:
        """Offer parts that were not stored."""


class RamStore:
    """The most recently used passages, up to a number of bytes; thread-safe.

    Args:
        codec: codes the states.
        max_bytes: greatest size of all parts together.
        kv_keep_ratio: the share of its tokens that each passage keeps.
    """

    def __init__(self, codec: Codec, max_bytes: int, kv_keep_ratio: float = 1.0) -> None:
        check_kv_keep_ratio(codec, kv_keep_ratio)
        self.codec = codec
        self.kv_keep_ratio = kv_keep_ratio
        self.max_bytes = max_bytes
        self.bytes = 0
        self._parts: OrderedDict[tuple[str, str], Parts] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        """The parts of each passage, which becomes the most recently used."""
        with self._lock:
            found = []
            for passage in passages:
                key = text_of(passage)
                if key in self._parts:
                    self._parts.move_to_end(key)
                found.append(self._parts.get(key))
            return found

    def put(self, passage: Passage, parts: Parts) -> None:
        """Keep parts, and drop the least recently used ones."""
        key = text_of(passage)
        with self._lock:
            self.bytes += _bytes(parts) - _bytes(self._parts.pop(key, {}))
            # A copy: the parts may be views of a whole batch.
            self._parts[key] = {name: part.clone() for name, part in parts.items()}
            while self.bytes > self.max_bytes:
                self.bytes -= _bytes(self._parts.popitem(last=False)[1])


class TieredStore:
    """RAM in front of a folder.

    Args:
        folder: the folder; its codec codes the passages in RAM, too.
        max_bytes: greatest size of the passages in RAM.
        hold_all: also hold in RAM what the folder has. By default only what it lacks, which is
            right for memory-mapped folders.

    Attributes:
        ram: the passages in RAM.
    """

    def __init__(self, folder: Store, max_bytes: int, *, hold_all: bool = False) -> None:
        self.folder = folder
        self.hold_all = hold_all
        self.codec = folder.codec
        self.kv_keep_ratio = folder.kv_keep_ratio
        self.ram = RamStore(self.codec, max_bytes, self.kv_keep_ratio)

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        """The parts of each passage, from RAM or else from the folder."""
        held = self.ram.get(passages)
        missing = [one for one, parts in zip(passages, held, strict=True) if parts is None]
        stored = self.folder.get(missing)
        if self.hold_all:
            for passage, parts in zip(missing, stored, strict=True):
                if parts is not None:
                    self.ram.put(passage, parts)
        found = iter(stored)
        return [next(found) if parts is None else parts for parts in held]

    def put(self, passage: Passage, parts: Parts) -> None:
        """Keep parts in RAM, and offer them to the folder."""
        self.ram.put(passage, parts)
        self.folder.put(passage, parts)


class DiskStore:
    """A folder made by :func:`imprag.kv_cache.build_kv_cache`, memory-mapped.

    Passages are found by their title and text, so that none is read in the place of one that was
    edited. Only requested passages are read from the disk, and a shard is opened at its first use.

    Args:
        path: the folder.

    Raises:
        ImpRAGError: there is no finished KV cache, or a file is missing or has another size.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = expand_home(path)
        self.manifest = KVCacheManifest.read(self.path)
        self.codec = load_codec(self.path, self.manifest)
        self.kv_keep_ratio = self.manifest.kv_keep_ratio
        self._shards: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.manifest.count

    def get(self, passages: Sequence[Passage]) -> list[Parts | None]:
        """The parts of each passage as views of the files; None where it is not stored."""
        return [
            None if place < 0 else self._parts(place)
            for place in self._texts.find(passages).tolist()
        ]

    def has(self, passages: Sequence[Passage]) -> list[bool]:
        """Whether each passage is stored."""
        found: list[bool] = (self._texts.find(passages) >= 0).tolist()
        return found

    def put(self, passage: Passage, parts: Parts) -> None:
        """Does nothing: a folder does not change."""

    @cached_property
    def _texts(self) -> KnownTexts:
        """The texts of all passages, in the order of their places."""
        shards = range(len(self.manifest.shards))
        hashes = np.concatenate([self._shard(number)["texts"].numpy() for number in shards])
        return KnownTexts(hashes.view(TEXT_HASH).ravel())

    def _parts(self, place: int) -> Parts:
        number = bisect_right(self._first_places, place) - 1
        shard, place = self._shard(number), place - self._first_places[number]
        start, end = shard["starts"][place : place + 2].tolist()
        heads = (self.manifest.t - self.manifest.b + 1, self.manifest.key_heads)
        parts = {}
        for name in shard.keys() - RESERVED_PARTS:
            coded = shard[name]
            vectors = len(coded) // int(shard["starts"][-1])  # of a token
            stored = coded[start * vectors : end * vectors]
            parts[name] = stored.view(-1, *heads, end - start, coded.shape[1])
        return parts

    @cached_property
    def _first_places(self) -> list[int]:
        """The place of each shard's first passage."""
        counts = [shard.count for shard in self.manifest.shards]
        return [0, *itertools.accumulate(counts[:-1])]

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._shards:
            path = self.path / self.manifest.shards[number].file.name
            try:
                with safe_open(path, "pt") as file:
                    self._shards[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise damaged(path, str(error)) from error
        return self._shards[number]


def load_codec(path: Path, manifest: KVCacheManifest) -> Codec:
    """The codec of a KV cache folder.

    Raises:
        ImpRAGError: the codec is unknown here, or the file with what it has learned is damaged.
    """
    codec = untrained_codec(manifest.codec, manifest.head_dim)
    if manifest.codec_file is not None:
        file = path / manifest.codec_file.name
        try:
            codec.load_state(load_file(file))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise damaged(file, str(error)) from error
    return codec


def _bytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())
