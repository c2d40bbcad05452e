"""``imprag index``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from imprag.errors import ImpRAGError


def index(
    *corpora: str,
    out: Path,
    model: str = "default",
    kind: Literal["flat", "ivfpq", "hnsw"] = "flat",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    skip_bad_lines: Annotated[bool, Parameter(negative="")] = False,
    compile: Annotated[bool, Parameter(negative="")] = False,
    dtype: str = "auto",
    device: str = "auto",
) -> None:
    """Embed a corpus with a model's lower layers and build a search index.

    An interrupted build goes on where it stopped when the same command is given again.

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
        out: The index folder to make; holds the passages, too.
        model: The model that will search it: `default`, a folder, a GGUF file or a Hugging Face id.
        kind: `flat` is exact; `ivfpq` is small; `hnsw` is fast.
        overwrite: Delete an index in `--out` of other passages (edited ones are others), of
            another model or with other settings, and build anew.
        skip_bad_lines: Leave out corpus lines that cannot be read, and list them.
        compile: Compile the layers first: a minute, then about a fifth less time. Needs a
            C++ compiler on a CPU.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where that is faster.
        device: `cpu`, `cuda`, `cuda:1` ...
    """
    from imprag.corpus import load_corpus
    from imprag.corpus.readers import SkippedLines
    from imprag.index.fitting import fit_documents
    from imprag.index.folder import IndexFolder
    from imprag.pipeline import ImpRAG

    if not corpora:
        raise ImpRAGError("say which corpus: default, a file or a folder")
    passages = load_corpus(corpora, skip_bad_lines=skip_bad_lines)
    for line in SkippedLines(**passages.manifest["skipped"]).summary():
        print(line, file=sys.stderr)
    rag = ImpRAG.from_pretrained(model, dtype=dtype, device=device)
    if compile:
        rag.model.compile_bottom()
    passages, cut = fit_documents(passages, rag.encoder)
    folder = IndexFolder.build(passages, rag.encoder, out, kind=kind, overwrite=overwrite, cut=cut)
    if cut.passages:
        print(cut, file=sys.stderr)
    print(f"{out}: {len(folder.corpus):,} passages, {kind} index", file=sys.stderr)
