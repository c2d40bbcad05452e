"""``imprag kv``: build."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from imprag.corpus.prompt_files import prompts_of_file
from imprag.errors import ImpRAGError

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG

kv = cyclopts.App(
    name="kv", help="Store passages' keys and values, so that answering does not encode them."
)

Flag = Annotated[bool, Parameter(negative="")]


@kv.command
def build(
    *,
    out: Path,
    index: Path | None = None,
    model: str = "default",
    codec: str = "bf16",
    kv_keep_ratio: float = 1.0,
    top_passages: int | None = None,
    prompts: Path | None = None,
    chat: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
) -> None:
    """Store keys and values of an index's passages at the layers that read them.

    `imprag ask` and `imprag eval` take the folder as `--kv-cache`. To resume an interrupted build,
    give the same command again.

    Examples:

    - `imprag kv build --model my-model --index my-index --out my-kv --codec int8`
    - `imprag kv build --out hot --top-passages 1000 --prompts asked.txt`
    - `imprag kv build --model my-model --index my-index --out my-kv --dry-run`

    Args:
        out: The folder to make.
        index: An index folder made by `imprag index` with the same model.
        model: The model that will read it: `default`, a folder, a GGUF file or a Hugging Face id.
        codec: How states are coded: `bf16`, `fp32`; `int8`, `int4`: half, a quarter of `bf16`;
            `pq`: product quantization, a sixth. Plug-ins add others.
        kv_keep_ratio: The share of its tokens that each passage keeps, those that receive most
            attention in it; 0.5 halves its size again.
        top_passages: Store only so many passages: those that `--prompts` retrieve most often.
        prompts: A file with a prompt on each line, as users ask them.
        chat: Put each of `--prompts` into the model's own chat template, for users who ask by
            `imprag ask --chat`.
        overwrite: Delete a KV cache in `--out` of other passages, of another model or with other
            settings, and build anew.
        dry_run: Say how large the KV cache would be, and build nothing.
        seed: Of the sample that a codec such as `pq` learns from.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where that is faster.
        device: `cpu`, `cuda`, `cuda:1` ...
    """
    from imprag.kv_cache.build import build_kv_cache, predict_kv_cache, prediction
    from imprag.pipeline import ImpRAG

    if (top_passages is None) != (prompts is None):
        raise ImpRAGError("--top-passages and --prompts belong together: the prompts choose")
    if chat and prompts is None:
        raise ImpRAGError("--chat is for --prompts: leave it out where there are none")
    rag = ImpRAG.from_pretrained(model, index, dtype=dtype, device=device)
    rows = None
    if prompts is not None and top_passages is not None:
        rows = _most_retrieved(rag, prompts, top_passages, chat=chat)
    if dry_run:
        sizes = predict_kv_cache(
            rag.corpus,
            rag.model,
            rag.tokenizer,
            codec=codec,
            kv_keep_ratio=kv_keep_ratio,
            rows=rows,
        )
        print(prediction(sizes, codec, out))
        return
    store = build_kv_cache(
        rag.corpus,
        rag.model,
        rag.tokenizer,
        out,
        codec=codec,
        kv_keep_ratio=kv_keep_ratio,
        rows=rows,
        seed=seed,
        overwrite=overwrite,
    )
    size = store.manifest.summary()["bytes_per_passage"]
    print(f"{out}: {len(store):,} passages, {size:,} bytes each", file=sys.stderr)


def _most_retrieved(rag: "ImpRAG", file: Path, count: int, *, chat: bool) -> list[int]:
    """Corpus rows of the passages that the prompts of a file retrieve most often."""
    from collections import Counter

    from tqdm import tqdm

    prompts = prompts_of_file(file)
    if count < 1 or not prompts:
        raise ImpRAGError("--top-passages needs at least one passage and one prompt")
    found: Counter[str] = Counter()
    for start in tqdm(range(0, len(prompts), 64), desc="Retrieving", unit=" batches"):
        for row in rag.retrieve(prompts[start : start + 64], chat=chat):
            found.update(one.passage.id for one in row)
    return rag.corpus.rows([passage_id for passage_id, _ in found.most_common(count)])
