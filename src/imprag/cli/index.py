"""``imprag index``."""

import sys
from pathlib import Path

from imprag.cli.options import DEFAULT_MODEL, Flag, ModelOptions
from imprag.errors import ImpRAGError


def index(
    *corpora: str,
    out: Path,
    model: ModelOptions = DEFAULT_MODEL,
    kind: str = "flat",
    overwrite: Flag = False,
    skip_bad_lines: Flag = False,
    compile: Flag = False,
) -> None:
    """Embed a corpus with a model's lower layers and build a search index.

    Rerun the same command after an interruption: the build continues where it stopped.

    For example:

    - `imprag index factbook --out factbook-index`
    - `imprag index passages.jsonl --out my-index --kind hnsw`
    - `imprag index notes/ --out my-index --overwrite`, after the notes were edited
    - `imprag index default notes/ --out both-index`
    - `imprag index psgs_w100.tsv --out wiki-index --kind ivfpq --model my-model`

    Args:
        corpora: A built-in corpus (`factbook`, `wiki10k`, `default`), a corpus folder, a file
            (JSONL, TSV, Parquet, Arrow, KILT, text, Markdown, reStructuredText), a folder of such
            files or a Hugging Face dataset. Several are joined.
        out: The index folder to make. It holds the passages, too.
        kind: Search structure: `flat` is exact and the right choice up to about a million passages;
            `hnsw` searches faster and needs more memory; `ivfpq` is a fraction of the size.
            Installed packages add others.
        overwrite: Replace an index in `--out` that is of another model, of other passages (edited
            ones count as others) or has other settings. Without it, the command refuses.
        skip_bad_lines: Skip corpus lines that cannot be read, and list them. Without it, the first
            one is an error.
        compile: Compile the layers first: takes a minute, then saves about a fifth of the time.
            For large corpora; needs a C++ compiler on a CPU.
    """
    from imprag.corpus import load_corpus
    from imprag.corpus.readers import SkippedLines
    from imprag.index.backends import INDEX_BACKENDS
    from imprag.index.fitting import fit_documents
    from imprag.index.folder import IndexFolder

    if not corpora:
        raise ImpRAGError("say which corpus: default, a file or a folder")
    INDEX_BACKENDS.find(kind)
    passages = load_corpus(corpora, skip_bad_lines=skip_bad_lines)
    for line in SkippedLines(**passages.manifest["skipped"]).summary():
        print(line, file=sys.stderr)
    rag = model.load()
    if compile:
        rag.model.compile_bottom()
    passages, cut = fit_documents(passages, rag.encoder)
    folder = IndexFolder.build(passages, rag.encoder, out, kind=kind, overwrite=overwrite, cut=cut)
    if cut.passages:
        print(cut, file=sys.stderr)
    print(f"{out}: {len(folder.corpus):,} passages, {kind} index", file=sys.stderr)
