"""``imprag kv``: build, clear."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts

from imprag.cli.options import (
    DEFAULT_MODEL,
    HERE,
    Flag,
    Json,
    ModelOptions,
    RayOptions,
    refuse_without_effect,
)
from imprag.errors import ImpRAGError
from imprag.io.building import readable_size
from imprag.io.file_cache import kv_files
from imprag.io.files import expand_home

if TYPE_CHECKING:
    from imprag.cli.planning import Plan
    from imprag.corpus import Passage
    from imprag.pipeline import ImpRAG

kv = cyclopts.App(
    name="kv", help="Store passages' keys and values, so that answering does not encode them."
)


@kv.command
def build(
    *,
    out: Path,
    index: Path | None = None,
    model: ModelOptions = DEFAULT_MODEL,
    codec: str | None = None,
    kv_keep_ratio: float | None = None,
    top_passages: int | None = None,
    prompts: Path | None = None,
    overwrite: Flag = False,
    update: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    ray: RayOptions = HERE,
) -> None:
    """Store the keys and values of an index's passages at the layers that read them.

    `imprag ask` and `imprag eval` take the folder as `--kv-cache`. Rerun the same command after an
    interruption: the build continues where it stopped.

    For example:

    - `imprag kv build --model my-model --index my-index --out my-kv --codec int8`
    - `imprag kv build --model my-model --index my-index --out my-kv --update`, after a change
    - `imprag kv build --out hot --top-passages 1000 --prompts asked.txt`
    - `imprag kv build --model my-model --index my-index --out my-kv --dry-run`

    Args:
        out: The folder to make.
        index: The index folder whose passages are stored, made by `imprag index` with the same
            model. If not given, the model's own.
        codec: Format of the stored keys and values: `bf16`, the default, `fp32`; `int8` takes half
            of `bf16`, `pq` (product quantization) an eighth; installed packages add others. Choose
            a smaller one if the disk is too small, and compare answers with `imprag eval
            --kv-cache`.
        kv_keep_ratio: Share of its tokens that each passage keeps: those that receive most
            attention in it. 0.5 halves the size again, at the cost of many answers. Not for `pq`.
        top_passages: Store only this many passages: those that `--prompts` retrieve most often. All
            if not given.
        prompts: A file with a prompt on each line, as users ask them, for `--top-passages`.
        overwrite: Replace a KV cache in `--out` that is of another model or of other passages, or
            has other settings. Without it, the command refuses.
        update: Add the passages that the KV cache in `--out` lacks, in its own format.
        dry_run: Print what the KV cache, or its update, would take, in each format or in `--codec`:
            time, disk, memory. Build nothing.
        json: Print that as JSON, with sizes in bytes.
    """
    if (top_passages is None) != (prompts is None):
        raise ImpRAGError("--top-passages and --prompts belong together: the prompts choose")
    if update:
        options = {"codec": codec, "kv_keep_ratio": kv_keep_ratio, "overwrite": overwrite}
        refuse_without_effect("with --update", **options)
        ray.refuse("with --update")
    if dry_run:
        refuse_without_effect("with --dry-run", overwrite=overwrite)
        ray.refuse("with --dry-run")
    else:
        refuse_without_effect("without --dry-run", json=json)
    from imprag.corpus.prompt_files import prompts_of_file
    from imprag.kv_cache.build import build_kv_cache, rows_to_add
    from imprag.kv_cache.hot import most_retrieved
    from imprag.kv_cache.manifest import states_fingerprint

    given = {"codec": codec, "kv_keep_ratio": kv_keep_ratio}
    settings: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    rag = model.load(index)
    rows = None
    if prompts is not None and top_passages is not None:
        found = most_retrieved(rag.retrieve, prompts_of_file(prompts), top_passages)
        rows = rag.corpus.rows(found)
    what = (rag.corpus, rag.model, rag.tokenizer)
    if dry_run:
        if update:
            held, rows = rows_to_add(expand_home(out), *what, rows)
            if not rows:
                raise ImpRAGError(f"{out} lacks none of the passages: there is nothing to add")
            manifest = held.manifest
            settings = {"codec": manifest.codec, "kv_keep_ratio": manifest.kv_keep_ratio}
        plan = _plan(rag, rows, settings)
        print(plan.as_json() if json else plan)
        return
    make_shards = None
    if (cluster := ray.cluster()) is not None:
        from imprag.distributed.ray_data import LoadedModel

        worker = LoadedModel(model.model, model.dtype, model.device)
        fingerprint = states_fingerprint(rag.model, rag.tokenizer)
        make_shards = cluster.kv_shards(worker, fingerprint)
    store = build_kv_cache(
        *what,
        out,
        rows=rows,
        overwrite=overwrite,
        update=update,
        make_shards=make_shards,
        **settings,
    )
    size = store.manifest.summary()["bytes_per_passage"]
    print(f"{out}: {len(store):,} passages, {size:,} bytes each", file=sys.stderr)


@kv.command
def clear() -> None:
    """Delete the passages that `imprag ask`, `serve` and `mcp` have kept on disk.

    They are encoded again when they are next read. `imprag info` says how many there are, where,
    and how much disk they take. Folders of `imprag kv build` are not touched.

    For example:

    - `imprag kv clear`
    """
    kept = kv_files()
    passages, size = kept.usage()
    try:
        kept.clear()
    except (OSError, NotImplementedError) as error:
        raise ImpRAGError(f"cannot clear {kept.folder}: {error}; delete it") from error
    print(f"{kept.folder}: deleted {passages:,} passages, {readable_size(size)}", file=sys.stderr)


def _plan(rag: "ImpRAG", rows: Sequence[int] | None, settings: dict[str, Any]) -> "Plan":
    """What a KV cache takes in each format, or in the given one."""
    from imprag.cli.planning import Plan, passages_per_second
    from imprag.kv_cache.build import predict_kv_cache
    from imprag.kv_cache.cache import encode_parts
    from imprag.kv_cache.codecs import CODECS, untrained_codec

    what = (rag.corpus, rag.model, rag.tokenizer)
    sizes: list[dict[str, str | int]] = []
    for name in [settings["codec"]] if "codec" in settings else CODECS.names():
        try:
            found = predict_kv_cache(*what, rows=rows, **{**settings, "codec": name})
        except ImpRAGError as error:
            if "codec" in settings:
                raise
            print(f"note: not {name}: {error}", file=sys.stderr)
            continue
        columns = {"bytes_per_passage": "bytes_per_passage", "disk": "bytes", "memory": "memory"}
        sizes.append({"codec": name, **{one: found[other] for one, other in columns.items()}})
    plain = untrained_codec("fp32", rag.model.decoder.head_dim)
    ratio = settings.get("kv_keep_ratio", 1.0)

    def encode(passages: "Sequence[Passage]") -> object:
        return encode_parts(rag.model, rag.tokenizer, passages, plain, ratio)

    stored = range(len(rag.corpus)) if rows is None else rows
    rate = passages_per_second(encode, rag.corpus, stored, 48)
    return Plan(len(stored), rate, "encoded", "codecs", sizes)
