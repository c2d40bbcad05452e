"""``imprag eval``."""

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.errors import ImpRAGError

if TYPE_CHECKING:
    from imprag.corpus import Corpus

Flag = Annotated[bool, Parameter(negative="")]


def evaluate(
    *,
    out: Path,
    tasks: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    data: Path | None = None,
    split: str | None = None,
    model: str = "default",
    index: Path | None = None,
    kv_cache: Path | None = None,
    corpus: str | None = None,
    retriever: str = "self",
    query_template: Literal["none", "oracle"] = "none",
    no_retrieval: Flag = False,
    oracle_passages: Flag = False,
    among: int | None = None,
    retrieval_only: Flag = False,
    k: int | None = None,
    in_context: Flag = False,
    chat: Flag = False,
    attention_score_bias: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    dtype: str = "auto",
    device: str = "auto",
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Evaluate a model or a retriever on tasks, and write a run folder with a report.

    An interrupted evaluation goes on where it stopped when the same command is given again.

    Examples:

    - `imprag eval --data factbook-bench --model my-model --index my-index --out run`
    - `imprag eval --data factbook-bench --tasks factbook/qa --no-retrieval --limit 200 --out run`
    - `imprag eval --data factbook-bench --retriever bm25 --retrieval-only --out run`
    - `imprag eval --tasks nq=NQ-open.dev.jsonl trex=trex-dev.jsonl --index wiki-index --out run`

    Args:
        out: The run folder.
        tasks: Tasks of `--data`; files whose examples name their tasks; or `TASK=FILE` for a task's
            official file. Without any, all tasks of `--data` that retrieve passages.
        data: A benchmark folder, as `imprag tasks build` makes it.
        split: The split of the benchmark (`test` if not given), or of a data set on the hub.
        model: The model: `default`, a folder, a GGUF file or a Hugging Face id.
        index: An index folder made by `imprag index` with the same model.
        kv_cache: A folder made by `imprag kv build` with the same model and index; what it holds
            is read from it.
        corpus: What every retriever but `self`, and `--oracle-passages`, take passages from, as
            for `imprag index`; if not given, the passages of `--index`, or else the benchmark's
            corpus.
        retriever: `self`, the model's lower layers; by the prompt's text `teacher`
            (all-MiniLM-L6-v2) or `bm25`; or one that an installed package adds.
        query_template: `oracle` gives a retriever other than `self` the bare question, entity and
            relation, statement or mention, in place of the whole prompt.
        no_retrieval: Let the model answer without passages.
        oracle_passages: Let the model read the gold passages.
        among: With `--oracle-passages`, let it read so many passages: the first gold one and
            others, drawn by `--seed`, in random order.
        retrieval_only: Measure retrieval alone; nothing is generated.
        k: Passages that the model reads; its own number if not given.
        in_context: Put the passages before the prompt, as in-context RAG does, instead of reading
            them in layers b to t.
        chat: Ask an instruct model through its own chat template, as `imprag ask --chat` does.
        attention_score_bias: With the model's own retrieval, how much more it reads from passages
            that score better; its own setting if not given.
        limit: At most so many examples of each task.
        seed: Draws the examples of `--limit` and the passages of `--among`.
        batch_size: Prompts in one batch.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where that is faster.
        device: `cpu`, `cuda`, `cuda:1` ...
        json: Print the results as one JSON object.
    """
    from imprag.evaluation.passage_sources import (
        gold_among,
        gold_passages,
        no_passages,
        own_retrieval,
        text_retrieval,
    )
    from imprag.evaluation.report import REPORT, require_packages
    from imprag.evaluation.run_folder import resumed_dtype
    from imprag.evaluation.runner import evaluate as run_evaluation
    from imprag.evaluation.tables import results_table
    from imprag.pipeline import ImpRAG
    from imprag.retrieval.registry import RETRIEVERS, RetrieverContext
    from imprag.tasks import read_tasks

    make_retriever = RETRIEVERS.find(retriever)
    if no_retrieval + oracle_passages + retrieval_only > 1:
        raise ImpRAGError("use one of --no-retrieval, --oracle-passages and --retrieval-only")
    if among is not None and (k is not None or not oracle_passages):
        raise ImpRAGError(
            "--among says how many passages --oracle-passages gives: use it with that, without --k"
        )
    own = retriever == "self" and not (no_retrieval or oracle_passages)
    if own and (corpus is not None or query_template != "none"):
        raise ImpRAGError(
            "--corpus and --query-template are not for the model's own retrieval: it searches "
            "--index by the prompt"
        )
    if attention_score_bias is not None and not own:
        raise ImpRAGError("--attention-score-bias is for the model's own retrieval")
    if retriever != "self" and (no_retrieval or oracle_passages):
        raise ImpRAGError(f"--retriever {retriever} has no use where nothing is retrieved")
    require_packages()
    examples = read_tasks(tasks or (), data=data, split=split)

    @cache
    def load_model() -> ImpRAG:
        weight = attention_score_bias
        settings = {} if weight is None else {"attention_score_bias": weight}
        precision = resumed_dtype(out, dtype)
        return ImpRAG.from_pretrained(
            model, index, kv_cache, dtype=precision, device=device, **settings
        )

    def load_passages() -> "Corpus":
        if not retrieval_only:
            load_model()  # whose mistakes show before a retriever embeds or indexes the corpus
        return _corpus(corpus, index, data)

    if own:
        source = own_retrieval(load_model())
    elif no_retrieval:
        source = no_passages()
    elif among is not None:
        source, k = gold_among(load_passages(), among, seed), among
    elif oracle_passages:
        source = gold_passages(load_passages())
    else:
        context = RetrieverContext(load_passages, lambda: load_model().retriever)
        source = text_retrieval(retriever, make_retriever(context), query_template)
    results = run_evaluation(
        None if retrieval_only else load_model(),
        examples,
        out,
        source=source,
        k=k,
        in_context=in_context,
        chat=chat,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        name=model,
    )
    if json:
        print_json(results)
    else:
        print(results_table(results["tasks"]), end="")
    print(f"report: {out / REPORT}", file=sys.stderr)


def _corpus(corpus: str | None, index: Path | None, data: Path | None) -> "Corpus":
    """The passages for everything but the model's own retrieval."""
    from imprag.corpus import load_corpus
    from imprag.index.folder import IndexFolder
    from imprag.tasks import load_benchmark

    if corpus is not None:
        return load_corpus(corpus)
    if index is not None:
        return IndexFolder.open(index).corpus
    named = {"name": "default"} if data is None else load_benchmark(data).get("corpus")
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise ImpRAGError(f"{data} does not say what its corpus is; name one with --corpus")
    return load_corpus(named["name"])
