"""``imprag eval``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from imprag.cli.console import print_json
from imprag.cli.options import DEFAULT_MODEL, Flag, Json, ModelOptions, Names
from imprag.errors import ImpRAGError


def evaluate(
    *,
    out: Path,
    tasks: Names = None,
    data: Path | None = None,
    split: str | None = None,
    model: ModelOptions = DEFAULT_MODEL,
    index: Path | None = None,
    kv_cache: Path | None = None,
    corpus: str | None = None,
    passages: Literal["retrieved", "gold", "gold-among-others", "none"] = "retrieved",
    retriever: Literal["self", "teacher", "bm25"] = "self",
    query_template: Literal["none", "oracle"] = "none",
    retrieval_only: Flag = False,
    k: int | None = None,
    in_context: Flag = False,
    chat: Flag = False,
    attention_score_bias: float | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    json: Json = False,
) -> None:
    """Evaluate a model or a retriever on tasks, and write a run folder with a report.

    Rerun the same command after an interruption: the evaluation continues where it stopped.

    For example:

    - `imprag eval --data factbook-bench --model my-model --index my-index --out run`
    - `imprag eval --data factbook-bench --tasks factbook/qa --passages none --limit 200 --out run`
    - `imprag eval --data factbook-bench --retriever bm25 --retrieval-only --out run`
    - `imprag eval --tasks nq=NQ-open.dev.jsonl trex=trex-dev.jsonl --index wiki-index --out run`

    Args:
        out: The run folder to make or to continue.
        tasks: Tasks of `--data`; files whose examples name their tasks; or `TASK=FILE` for a task's
            official file. If not given, all tasks of `--data` that retrieve passages.
        data: The benchmark folder that `--tasks` names tasks of, made by `imprag tasks build`.
        split: The split of the benchmark (`test` if not given), or of a data set on the hub
            (`validation` if not given). Use `dev` while you still choose settings.
        index: The index folder to retrieve from, made by `imprag index` with the same model. If not
            given, the model's own.
        kv_cache: A KV cache made by `imprag kv build` with the same model and index: passages are
            read from it. If not given, they are encoded.
        corpus: The passages of the text retrievers and of `--passages gold`, as for `imprag index`.
            If not given, the passages of `--index`, or else the benchmark's corpus.
        passages: What the model reads: passages that are `retrieved`; the `gold` passages; of
            `--k` passages the first gold one and others, in random order (`gold-among-others`); or
            `none`. The last three measure reading without retrieval.
        retriever: What retrieves: the model itself, all-MiniLM-L6-v2, or BM25.
        query_template: `oracle` gives a text retriever the query that a person would write: the
            bare question, entity and relation, statement or mention. `none` gives it the prompt.
        retrieval_only: Measure retrieval alone; nothing is generated.
        k: Number of passages that the model reads; its own number if not given.
        in_context: Put the passages before the prompt, as in-context RAG does, instead of reading
            them in layers b to t.
        chat: Put each prompt into the model's own chat template, as `imprag ask --chat` does.
        attention_score_bias: Weight of the retrieval scores in the attention to passages, for the
            model's own retrieval; its own setting if not given. 0 reads all passages alike.
        limit: Greatest number of examples of each task; every run draws the same ones. All if not
            given.
        batch_size: Prompts in one batch. Raise it on a GPU, lower it if memory is short.
        json: Print the results as one JSON object instead of a table.
    """
    from imprag.evaluation.passage_sources import (
        bm25_retrieval,
        choose_corpus,
        gold_among,
        gold_passages,
        no_passages,
        own_retrieval,
        teacher_retrieval,
    )
    from imprag.evaluation.report import REPORT, require_packages
    from imprag.evaluation.run_folder import resumed_dtype
    from imprag.evaluation.runner import evaluate as run_evaluation
    from imprag.evaluation.tables import results_table
    from imprag.retrieval.dense import require_teacher
    from imprag.retrieval.lexical import require_bm25
    from imprag.tasks import read_tasks

    given = passages != "retrieved"
    if given and retrieval_only:
        raise ImpRAGError(f"--retrieval-only has nothing to measure with --passages {passages}")
    if passages == "gold-among-others" and k is None:
        raise ImpRAGError("--passages gold-among-others needs --k: the number of passages")
    own = retriever == "self" and not given
    if own and (corpus is not None or query_template != "none"):
        raise ImpRAGError(
            "--corpus and --query-template are not for the model's own retrieval: it searches "
            "--index by the prompt"
        )
    if attention_score_bias is not None and not own:
        raise ImpRAGError("--attention-score-bias is for the model's own retrieval")
    if retriever != "self" and given:
        raise ImpRAGError(f"--retriever {retriever} has no use with --passages {passages}")
    require_packages()
    if retriever == "bm25":
        require_bm25()
    elif retriever == "teacher":
        require_teacher()
    examples = read_tasks(tasks or (), data=data, split=split)
    rag = None
    if own or not retrieval_only:
        weight = attention_score_bias if own else 0.0  # other scores mean something else
        settings = {} if weight is None else {"attention_score_bias": weight}
        rag = replace(model, dtype=resumed_dtype(out, model.dtype)).load(
            index, kv_cache, **settings
        )
    if rag is not None and own:
        source = own_retrieval(rag)
    elif passages == "none":
        source = no_passages()
    else:
        texts = choose_corpus(corpus, index, data)
        if passages == "gold":
            source = gold_passages(texts)
        elif passages == "gold-among-others" and k is not None:
            source = gold_among(texts, k)
        elif retriever == "teacher":
            source = teacher_retrieval(texts, query_template)
        else:
            source = bm25_retrieval(texts, query_template)
    results = run_evaluation(
        None if retrieval_only else rag,
        examples,
        out,
        source=source,
        k=k,
        in_context=in_context,
        chat=chat,
        limit=limit,
        batch_size=batch_size,
        name=model.model,
    )
    if json:
        print_json(results)
    else:
        print(results_table(results["tasks"]), end="")
    print(f"report: {out / REPORT}", file=sys.stderr)
