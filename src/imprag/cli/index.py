"""``imprag index``."""

from pathlib import Path

from imprag.cli.options import (
    DEFAULT_MODEL,
    HERE,
    Flag,
    Json,
    ModelOptions,
    Names,
    RayOptions,
    refuse_without_effect,
)
from imprag.errors import ImpRAGError

FLAT = "flat"


def index(
    *corpora: str,
    out: Path,
    model: ModelOptions = DEFAULT_MODEL,
    kind: str | None = None,
    uri: str = "",
    overwrite: Flag = False,
    update: Flag = False,
    add: Names = None,
    remove: Names = None,
    compact: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
    ray: RayOptions = HERE,
    skip_bad_lines: Flag = False,
    compile: Flag = False,
) -> None:
    """Embed a corpus with a model's lower layers and build a search index, or change one.

    Rerun the same command after an interruption: the build continues where it stopped. A change
    embeds new texts only and takes effect at its end, all at once: until then programs read the
    state before, and a running server reads the new one from its next request on.

    For example:

    - `imprag index factbook --out factbook-index`
    - `imprag index passages.jsonl --out my-index --kind hnsw`
    - `imprag index default notes/ --out both-index`
    - `imprag index psgs_w100.tsv --out wiki-index --kind ivfpq --model my-model`
    - `imprag index wiki.jsonl --out wiki-index --kind milvus --uri http://localhost:19530`
    - `imprag index psgs_w100.tsv --out wiki-index --dry-run`
    - `imprag index psgs_w100.tsv --out wiki-index --ray auto --workers 16 --worker-gpus 1`
    - `imprag index notes/ --out my-index --update`, after the notes were edited
    - `imprag index --out my-index --add more.jsonl --remove p17 p18`

    Args:
        corpora: A built-in corpus (`factbook`, `wiki10k`, `default`), a corpus folder, a file
            (JSONL, TSV, Parquet, Arrow, KILT, text, Markdown, reStructuredText), a folder of such
            files or a Hugging Face dataset. Several are joined.
        out: The index folder to make or to change. It holds the passages, too.
        kind: Search structure: `flat`, the default, is exact and the right choice up to about a
            million passages; `hnsw` searches faster and needs more memory; `ivfpq` is a fraction of
            the size; `milvus`, `milvus-ivf` (inverted lists) and `pgvector` keep the vectors on a
            server. Installed packages add others.
        uri: The server, for kinds that need one, without a password: Milvus reads that from
            `MILVUS_TOKEN`, PostgreSQL from `PGPASSWORD` or `PGPASSFILE`.
        overwrite: Replace an index in `--out` that is of another model, of other passages (edited
            ones count as others) or has other settings. Without it, the command refuses. The old
            index stays until the new one is finished.
        update: Let the index in `--out`, made by the same model, hold these passages instead of its
            own. Embeddings of texts that it holds already are kept.
        add: Corpora whose passages are added to the index in `--out`. They replace passages with
            the same ids. Records without ids, and documents that the index has or that lie in its
            corpora, are refused: use `--update` with all corpora.
        remove: Ids of passages to remove from the index in `--out`.
        compact: Delete what the index in `--out` keeps of its state before the last change, for
            programs that still read it.
        dry_run: Print what the index would take, of each kind or of `--kind`: time, disk, memory.
            Build nothing.
        json: Print that as JSON, with sizes in bytes.
        skip_bad_lines: Skip corpus lines that cannot be read, and list them. Without it, the first
            one is an error.
        compile: Compile the layers first: takes a minute, then saves about a fifth of the time.
            For large corpora; needs a C++ compiler on a CPU.
    """
    from imprag.index.backends import INDEX_BACKENDS

    changes = add is not None or remove is not None
    if changes or (compact and not corpora):
        where = "with --add, --remove or --compact"
        options = {"kind": kind, "uri": uri or None, "overwrite": overwrite, "update": update}
        refuse_without_effect(where, **options)
        if add is None:
            ray.refuse("without texts to embed")
        if corpora:
            raise ImpRAGError("give the passages to add after --add, or all passages with --update")
    elif not corpora:
        raise ImpRAGError("say which corpus: default, a file or a folder")
    if dry_run:
        where = "with --dry-run"
        refuse_without_effect(where, add=add, remove=remove, update=update, compact=compact)
        refuse_without_effect(where, overwrite=overwrite, uri=uri or None)
        ray.refuse(where)
    if update and overwrite:
        raise ImpRAGError("--update keeps embeddings and --overwrite drops them: choose one")
    if not dry_run:
        refuse_without_effect("without --dry-run", json=json)
    INDEX_BACKENDS.find(kind or FLAT)
    from imprag.cli.indexing import Making  # loads PyTorch
    from imprag.index.update import compact as delete_earlier_states

    made = Making(out, model, skip_bad_lines, compile, ray)
    if dry_run:
        plan = made.plan(corpora, kind)
        print(plan.as_json() if json else plan)
    elif changes:
        made.change(add or [], remove or [])
    elif update:
        made.update(corpora, kind, uri)
    elif corpora:
        made.build(corpora, kind or FLAT, uri, overwrite)
    if compact:
        delete_earlier_states(out)
