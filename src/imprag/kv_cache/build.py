"""Building a KV cache: encode passages in shards, code their states, resume after a kill.

``OUT.building`` holds ``plan.json``, the codec's fitted state (``codec-<checksum>.safetensors``)
and the finished shards (``parts/<number>-<checksum>.safetensors``). The result depends only on the
passages, the model and the settings. Memory holds one shard at a time.
"""

import dataclasses
import hashlib
import itertools
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from imprag.corpus import Corpus, Passage
from imprag.corpus.passage import text_hashes, text_of
from imprag.errors import ImpRAGError
from imprag.io.building import (
    OVERWRITE,
    StoredFile,
    building_folder,
    check_name,
    claim,
    differences,
    discard,
    is_free,
    move_into_place,
    numbered_files,
    readable_size,
    remove_work,
    sweep,
    versions,
    write_file,
)
from imprag.io.files import expand_home
from imprag.io.locking import only_builder
from imprag.io.progress import progress_bar
from imprag.kv_cache.cache import check_independent, encode_parts, states_to_code
from imprag.kv_cache.codecs.base import (
    Codec,
    check_kv_keep_ratio,
    check_parts,
    needs_fit,
    untrained_codec,
    weighs,
)
from imprag.kv_cache.manifest import (
    KVCacheManifest,
    Shard,
    holds_kv_cache,
    states_fingerprint,
)
from imprag.kv_cache.query_moments import query_moments
from imprag.kv_cache.stores import DiskStore
from imprag.model.model import ImpRAGModel
from imprag.model.text import passage_tokens

DEFAULT_CODEC = "bf16"
SHARD_BYTES = 256_000_000
_BATCH = 1024

MakeShards = Callable[
    [Corpus, Codec, float, Mapping[int, Sequence[int]]], Iterator[tuple[int, bytes]]
]
"""Encodes shards: from the corpus, the codec, the share of tokens to keep and the rows of every
missing shard to the number of each shard with its content, as :func:`shard_content` makes it, in
any order."""
_SAMPLE = 256  # passages to fit a codec to, and to predict sizes from
_WEIGHED = 64  # of them, whose queries tell which errors of keys cost most


def predict_kv_cache(
    corpus: Corpus,
    model: ImpRAGModel,
    tokenizer: Any,
    *,
    codec: str = DEFAULT_CODEC,
    kv_keep_ratio: float = 1.0,
    rows: Sequence[int] | None = None,
) -> dict[str, int]:
    """The size of a KV cache before it is built, from the lengths of some passages.

    Returns:
        ``count`` of passages, ``tokens`` that are stored, ``bytes_per_passage`` and ``bytes`` on
        disk, and ``memory`` that the build takes in addition to the model's.

    Raises:
        ImpRAGError: the codec is unknown, or cannot take the head size or ``kv_keep_ratio``.
    """
    coder = untrained_codec(codec, model.decoder.head_dim)
    check_kv_keep_ratio(coder, kv_keep_ratio)
    rows = range(len(corpus)) if rows is None else rows
    sample = _sample(rows)
    lengths = map(len, passage_tokens(tokenizer, model.config, corpus.passages(sample)))
    mean = kv_keep_ratio * sum(lengths) / len(sample)
    layers = model.config.t - model.config.b + 1
    vectors = 2 * layers * model.decoder.num_key_heads
    size = mean * vectors * coder.bytes_per_vector
    return {
        "count": len(rows),
        "tokens": round(mean * len(rows)),
        "bytes_per_passage": round(size),
        "bytes": round(size * len(rows)),
        # A shard is held as parts of passages, as joined parts and as the content of its file.
        "memory": round(3 * size * min(len(rows), _shard_passages(model, codec))),
    }


def build_kv_cache(
    corpus: Corpus,
    model: ImpRAGModel,
    tokenizer: Any,
    out: Path | str,
    *,
    codec: str = DEFAULT_CODEC,
    kv_keep_ratio: float = 1.0,
    rows: Sequence[int] | None = None,
    shard_passages: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    update: bool = False,
    progress: bool = True,
    make_shards: MakeShards | None = None,
) -> DiskStore:
    """Store the keys and values of passages at layers b..t; resumes an interrupted build.

    Args:
        corpus: the corpus of the passages.
        model: the model.
        tokenizer: its tokenizer.
        out: the folder to make. If it holds this very KV cache already, that is opened.
        codec: the name of a codec, such as ``bf16``, ``int8`` or ``pq``; see `register_codec`.
        kv_keep_ratio: the share of its tokens that each passage keeps, those that receive most
            attention in it; 1 with a codec that needs the position of every token (``pq``).
        rows: of the passages to store; all if not given. A KV cache of some of them stays one of a
            selection: updates of it need ``rows``, too.
        shard_passages: passages in a file; by default as many as fit into 256 MB.
        seed: seed of the sample that a codec such as ``pq`` is fitted to.
        overwrite: delete a KV cache of other passages, of another model or with other settings,
            finished or not, and rebuild.
        update: add the passages whose text a finished KV cache in ``out`` lacks, with its own
            ``codec`` and ``kv_keep_ratio``. What it holds of other passages stays.
        progress: tell on standard error how much disk it takes, and show a bar.
        make_shards: makes the missing shards in the place of ``model``; see `MakeShards`.

    Raises:
        ImpRAGError: ``out`` holds something else; an unfinished build there has other settings;
            the model's passages are not encoded independently; the codec is unknown or cannot take
            the head size or ``kv_keep_ratio``; the disk is full. The parts that are finished are
            kept.
    """
    out = expand_home(out)
    check_independent(model)
    if shard_passages is None:
        shard_passages = _shard_passages(model, codec)
    if update:
        return _update(out, corpus, model, tokenizer, rows, shard_passages, progress)
    rows = _checked_rows(corpus, rows)
    coder = untrained_codec(codec, model.decoder.head_dim)
    check_kv_keep_ratio(coder, kv_keep_ratio)
    size = coder.bytes_per_vector
    config = model.config
    goal = KVCacheManifest(
        model_fingerprint=states_fingerprint(model, tokenizer),
        corpus_fingerprint=corpus.fingerprint,
        b=config.b,
        t=config.t,
        key_heads=model.decoder.num_key_heads,
        head_dim=model.decoder.head_dim,
        codec=codec,
        bytes_per_vector=size,
        kv_keep_ratio=kv_keep_ratio,
        count=len(rows),
        tokens=0,
        shards=[],
        codec_file=None,
        versions={},
        selection=len(rows) < len(corpus),
    )
    plan = {**dataclasses.asdict(goal), "shard_passages": shard_passages, "seed": seed}
    plan["rows"] = hashlib.sha256(np.array(rows).tobytes()).hexdigest()
    work = building_folder(out)
    if not (overwrite or is_free(out) or work.exists()):
        return _finished(out, corpus, goal, rows)
    with only_builder(out) as alone:
        store = None
        if not is_free(out):
            try:
                store = _finished(out, corpus, goal, rows)
            except ImpRAGError:
                if not overwrite or not holds_kv_cache(out):
                    raise
                discard(out, work)
        if store is None:
            claim(work, plan, alone=alone, overwrite=overwrite)
            if progress:
                predicted = predict_kv_cache(
                    corpus, model, tokenizer, codec=codec, kv_keep_ratio=kv_keep_ratio, rows=rows
                )
                print(prediction(predicted, codec, out), file=sys.stderr)
            parts = work / "parts"
            learned = _learned(parts, coder, corpus, model, tokenizer, rows, seed)
            shards = [rows[n : n + shard_passages] for n in range(0, len(rows), shard_passages)]
            make = make_shards or partial(_make_shards, model, tokenizer)
            _write_shards(parts, shards, partial(make, corpus, coder, kv_keep_ratio), progress)
            _finish(parts, goal, learned)
            move_into_place(parts, out)
            store = DiskStore(out)
        remove_work(work)
    return store


def _checked_rows(corpus: Corpus, rows: Sequence[int] | None) -> Sequence[int]:
    """Rows to store, in ascending order; all if None."""
    rows = range(len(corpus)) if rows is None else sorted(set(rows))
    if not rows or rows[0] < 0 or rows[-1] >= len(corpus):
        raise ImpRAGError(f"rows to store must be of the corpus, which has {len(corpus)}")
    return rows


def prediction(sizes: dict[str, int], codec: str, out: Path) -> str:
    """One line on the disk that a KV cache will take."""
    free = shutil.disk_usage(out.absolute().parent).free
    return (
        f"{codec} KV cache of {sizes['count']:,} passages: "
        f"about {readable_size(sizes['bytes_per_passage'])} a passage, "
        f"{readable_size(sizes['bytes'])} on disk ({readable_size(free)} are free)"
    )


def _learned(
    folder: Path,
    codec: Codec,
    corpus: Corpus,
    model: ImpRAGModel,
    tokenizer: Any,
    rows: Sequence[int],
    seed: int,
) -> StoredFile | None:
    """The file with the codec's fitted state, made at the first call; None if it has none."""
    if not needs_fit(codec):
        return None
    for path in folder.glob("codec-*"):
        codec.load_state(safetensors.torch.load_file(path))
        return StoredFile(path.name, path.stat().st_size, check_name(path))
    fit_codec(codec, corpus.passages(_sample(rows, seed)), model, tokenizer, seed)
    state = safetensors.torch.save(codec.state())
    return write_file(folder, "codec.safetensors", lambda stream: stream.write(state))


def fit_codec(
    codec: Codec, passages: Sequence[Passage], model: ImpRAGModel, tokenizer: Any, seed: int = 0
) -> None:
    """Fit a codec to the states of a sample of passages.

    Args:
        codec: a codec with a fitted state.
        passages: some hundreds of passages.
        model: the model.
        tokenizer: its tokenizer.
        seed: seed of the fit.

    Raises:
        ImpRAGError: the passages have too few tokens.
    """
    if weighs(codec):
        codec.weigh(query_moments(model, tokenizer, passages[:_WEIGHED]))
    codec.fit(torch.cat(states_to_code(model, tokenizer, passages, codec), dim=3), seed)


def _write_shards(
    folder: Path,
    shards: Sequence[Sequence[int]],
    make: Callable[[Mapping[int, Sequence[int]]], Iterator[tuple[int, bytes]]],
    progress: bool,
) -> None:
    """Make the shards that are missing."""
    there = numbered_files(folder)
    missing = {number: rows for number, rows in enumerate(shards) if number not in there}
    count = sum(map(len, shards))
    done = count - sum(map(len, missing.values()))
    with progress_bar("Encoding", count, progress, done) as bar:
        for number, content in make(missing):
            _write_shard(folder, number, content)
            bar.update(len(missing[number]))


def _write_shard(folder: Path, number: int, content: bytes) -> StoredFile:
    return write_file(folder, f"{number:06}.safetensors", lambda stream: stream.write(content))


def _make_shards(
    model: ImpRAGModel,
    tokenizer: Any,
    corpus: Corpus,
    codec: Codec,
    kv_keep_ratio: float,
    missing: Mapping[int, Sequence[int]],
) -> Iterator[tuple[int, bytes]]:
    for number, rows in missing.items():
        passages = corpus.passages(rows)
        yield number, shard_content(model, tokenizer, passages, codec, kv_keep_ratio)


def shard_content(
    model: ImpRAGModel,
    tokenizer: Any,
    passages: Sequence[Passage],
    codec: Codec,
    kv_keep_ratio: float,
) -> bytes:
    """The file of a shard: the concatenated parts of its passages, (vectors, width) each.

    ``starts`` are the passages' first tokens, with their number at the end.
    """
    coded = encode_parts(model, tokenizer, passages, codec, kv_keep_ratio)
    check_parts(coded[0])
    lengths = [next(iter(parts.values())).shape[3] for parts in coded]
    return safetensors.torch.save(
        {
            "texts": torch.from_numpy(text_hashes(passages).view(np.int64).reshape(-1, 2)),
            "starts": torch.tensor([0, *itertools.accumulate(lengths)]),
            **{
                name: torch.cat([parts[name].cpu().flatten(0, 3) for parts in coded])
                for name in coded[0]
            },
        }
    )


def _finish(folder: Path, goal: KVCacheManifest, learned: StoredFile | None) -> None:
    """Write the manifest; every shard is compared with its checksum on the way."""
    shards = []
    for _, path in sorted(numbered_files(folder).items()):
        stored = StoredFile(path.name, path.stat().st_size, check_name(path))
        shards.append(_described(path, stored))
    dataclasses.replace(
        goal,
        tokens=sum(shard.tokens for shard in shards),
        shards=shards,
        codec_file=learned,
        versions=versions(torch=torch.__version__, transformers=transformers.__version__),
    ).write(folder)


def _described(path: Path, stored: StoredFile) -> Shard:
    """What the manifest says about a shard."""
    with safetensors.safe_open(path, "pt") as file:
        starts = file.get_tensor("starts")
    return Shard(stored, len(starts) - 1, int(starts[-1]))


def _finished(out: Path, corpus: Corpus, goal: KVCacheManifest, rows: Sequence[int]) -> DiskStore:
    """Open the KV cache in ``out``; refuse one that differs from ``goal``."""
    wanted = dataclasses.asdict(goal)
    for made in ("tokens", "shards", "codec_file", "versions"):
        del wanted[made]
    found = KVCacheManifest.read(out)
    other = differences(wanted, dataclasses.asdict(found))
    store = DiskStore(out)
    if other or not _holds(store, corpus, rows):
        raise ImpRAGError(
            f"{out} holds a KV cache already, with another {other or 'set of passages'}; "
            "add the passages that it lacks with imprag kv build --update, or "
            f"{OVERWRITE}, or choose another folder"
        )
    return store


def _shard_passages(model: ImpRAGModel, codec: str) -> int:
    """Number of passages that are about as large as a file should be."""
    config, decoder = model.config, model.decoder
    vectors = 2 * (config.t - config.b + 1) * decoder.num_key_heads
    size = vectors * untrained_codec(codec, decoder.head_dim).bytes_per_vector
    return max(1, SHARD_BYTES // (config.max_passage_tokens * size))


def _update(
    out: Path,
    corpus: Corpus,
    model: ImpRAGModel,
    tokenizer: Any,
    rows: Sequence[int] | None,
    shard_passages: int,
    progress: bool,
) -> DiskStore:
    """Add the passages that a KV cache lacks; each file is valid as soon as it is named."""
    with only_builder(out) as alone:
        if alone:
            sweep(out)
        store, missing = rows_to_add(out, corpus, model, tokenizer, rows)
        manifest = store.manifest
        if progress and missing:
            codec, ratio = manifest.codec, manifest.kv_keep_ratio
            predicted = predict_kv_cache(
                corpus, model, tokenizer, codec=codec, kv_keep_ratio=ratio, rows=missing
            )
            print(f"to add: {prediction(predicted, codec, out)}", file=sys.stderr)
        with progress_bar("Encoding", len(missing), progress) as bar:
            for start in range(0, len(missing), shard_passages):
                passages = corpus.passages(missing[start : start + shard_passages])
                content = shard_content(
                    model, tokenizer, passages, store.codec, manifest.kv_keep_ratio
                )
                file = _write_shard(out, len(manifest.shards), content)
                shard = _described(out / file.name, file)
                manifest = manifest.with_shard(shard)
                manifest.write(out)
                bar.update(len(passages))
        dataclasses.replace(manifest, corpus_fingerprint=corpus.fingerprint).write(out)
    return DiskStore(out)


def rows_to_add(
    out: Path, corpus: Corpus, model: ImpRAGModel, tokenizer: Any, rows: Sequence[int] | None
) -> tuple[DiskStore, list[int]]:
    """A KV cache, and the rows of the passages that an update adds to it, one of each text.

    Args:
        out: the folder of the KV cache.
        corpus, model, tokenizer, rows: as for :func:`build_kv_cache`.

    Raises:
        ImpRAGError: there is no KV cache of this model, or it is one of a selection and ``rows``
            are not given.
    """
    store = DiskStore(out)
    store.manifest.check(out, model_fingerprint=states_fingerprint(model, tokenizer))
    if rows is None and store.manifest.selection:
        raise ImpRAGError(
            f"{out} holds only the passages that prompts retrieved most often: give --top-passages "
            "and --prompts, whose choice is added"
        )
    return store, _missing(store, corpus, _checked_rows(corpus, rows))


def _holds(store: DiskStore, corpus: Corpus, rows: Sequence[int]) -> bool:
    """Whether a KV cache holds these passages and, as far as their number tells, no others."""
    batches = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
    return all(all(store.has(corpus.passages(batch))) for batch in batches)


def _missing(store: DiskStore, corpus: Corpus, rows: Sequence[int]) -> list[int]:
    """The rows whose passages a KV cache lacks, one of each text."""
    missing: dict[tuple[str, str], int] = {}
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        passages = corpus.passages(batch)
        for row, passage, stored in zip(batch, passages, store.has(passages), strict=True):
            if not stored:
                missing.setdefault(text_of(passage), row)
    return list(missing.values())


def _sample(rows: Sequence[int], seed: int = 0) -> list[int]:
    return sorted(random.Random(seed).sample(rows, min(_SAMPLE, len(rows))))
