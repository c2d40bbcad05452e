"""A small folder of a trained adapter and its embeddings, to be shipped in a package."""

import os
from pathlib import Path

import torch
import transformers

from imprag.corpus import load_corpus
from imprag.index.stored_embeddings import write_embeddings
from imprag.io.building import versions
from imprag.io.files import write_json
from imprag.io.locking import new_folder
from imprag.model.compact import write_compact_adapter
from imprag.model.load import EMBEDDINGS, load_pretrained
from imprag.model.passage_encoder import PassageEncoder
from imprag.training.run import MODEL, RECIPE, training_time


def export(run: Path, out: Path, corpus: str = "default", dtype: str = "auto") -> None:
    """Write a run's adapter in 8 bits, the embeddings of a corpus, the recipe and its provenance.

    Args:
        run: a run folder of a recipe with ``lora``.
        out: the folder to make.
        corpus: what :func:`imprag.corpus.load_corpus` takes.
        dtype: that passages are embedded in.

    Raises:
        ImpRAGError: the run holds no adapter or is not finished, or ``out`` is taken.
    """
    with new_folder(out):
        write_compact_adapter(run / MODEL, out)
        model, tokenizer = load_pretrained(out, dtype)
        write_embeddings(load_corpus(corpus), PassageEncoder(model, tokenizer), out / EMBEDDINGS)
        # Where the recipe's files lay on this machine is nobody's business.
        recipe = (run / RECIPE).read_text(encoding="utf-8")
        (out / RECIPE).write_text(recipe.replace(f"{Path.cwd()}{os.sep}", ""), encoding="utf-8")
        write_json(
            out / "provenance.json",
            {
                "command": f"imprag export {run} --out {out}",
                **training_time(run),
                **versions(torch=torch.__version__, transformers=transformers.__version__),
            },
        )
