"""``imprag export``."""

import sys
from pathlib import Path


def export(run: Path, /, *, out: Path, corpus: str = "default", dtype: str = "auto") -> None:
    """Make a small folder of a trained adapter and its embeddings of a corpus, to be shipped.

    The adapter's factors are stored in 8-bit floats, embeddings in 8-bit integers. The folder also
    has the recipe and says how long training took. It is itself a model for `--model`.

    For example:

    - `imprag export runs/default --out src/imprag/default`

    Args:
        run: A run folder made by `imprag train` with a recipe that has `lora`.
        out: The folder to make.
        corpus: The passages to embed.
        dtype: That they are embedded in: `float32`, `bfloat16`, or `auto`.
    """
    import os

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
                "command": f"imprag export {run} --out {out} --corpus {corpus}",
                **training_time(run),
                **versions(torch=torch.__version__, transformers=transformers.__version__),
            },
        )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB", file=sys.stderr)
