"""``imprag eval``."""

import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imprag.cli.console import print_json
from imprag.cli.options import (
    BY_MODEL,
    DEFAULT_MODEL,
    OWN_SCHEDULE,
    AskingAgain,
    Flag,
    Json,
    LexicalWeight,
    ModelOptions,
    Names,
    Retrieval,
    refuse_without_effect,
)
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home

if TYPE_CHECKING:
    from imprag.corpus import Corpus
    from imprag.pipeline import ImpRAG


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
    retrieval: Retrieval = None,
    lexical_weight: LexicalWeight = None,
    query_template: Literal["none", "oracle"] = "none",
    retrieval_only: Flag = False,
    unanswerable: Flag = False,
    k: int | None = None,
    in_context: Flag = False,
    again: AskingAgain = OWN_SCHEDULE,
    chat: Flag = False,
    attention_score_bias: float | None = None,
    limit: int | None = None,
    json: Json = False,
) -> None:
    """Evaluate a model or a retriever on tasks, and write a run folder with a report.

    Rerun the same command after an interruption: the evaluation continues where it stopped. A model
    that was trained as a baseline (`system` in its recipe) retrieves with its own retriever and
    reads in the context.

    For example:

    - `imprag eval --data factbook-bench --model my-model --index my-index --out run`
    - `imprag eval --data factbook-bench --tasks factbook/qa --passages none --limit 200 --out run`
    - `imprag eval --data factbook-bench --retrieval lexical --retrieval-only --out run`
    - `imprag eval --data factbook-bench --tasks factbook/two_hop --retrieve 'on:;' --k 10 --out r`
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
        query_template: `oracle` gives a text retriever the query that a person would write: the
            bare question, entity and relation, statement or mention. `none` gives it the prompt.
        retrieval_only: Measure retrieval alone; nothing is generated.
        unanswerable: Leave each prompt's gold passages out of what it retrieves, so that the corpus
            does not answer it: how many answers does the confidence refuse?
        k: Number of passages that the model reads; its own number if not given.
        in_context: Put the passages before the prompt, as in-context RAG does, instead of reading
            them in layers b to t.
        chat: Put each prompt into the model's own chat template, as `imprag ask --chat` does.
        attention_score_bias: Weight of the retrieval scores in the attention to passages, for the
            model's own retrieval; its own setting if not given. 0 reads all passages alike.
        limit: Greatest number of examples of each task; every run draws the same ones. All if not
            given.
        json: Print the results as one JSON object instead of a table.
    """
    from imprag.baselines.folder import Baseline
    from imprag.evaluation.passage_sources import (
        choose_corpus,
        gold_among,
        gold_passages,
        no_passages,
        own_retrieval,
        text_retrieval,
        without_gold,
    )
    from imprag.evaluation.report import REPORT, require_packages
    from imprag.evaluation.run_folder import resumed_dtype
    from imprag.evaluation.runner import evaluate as run_evaluation
    from imprag.evaluation.tables import results_table
    from imprag.index.folder import IndexFolder
    from imprag.pipeline import implicit_retriever
    from imprag.retrieval.registry import RETRIEVERS, RetrieverContext
    from imprag.tasks import read_tasks

    baseline = Baseline.load(model.model)
    if baseline is None or retrieval is not None:
        chosen = retrieval or "implicit"  # or hybrid, as the model says; its own in any case
        make_retriever = RETRIEVERS.find(chosen)
    else:
        chosen, make_retriever = baseline.system, baseline.make_retriever
    given = passages != "retrieved"
    if given and retrieval_only:
        raise ImpRAGError(f"--retrieval-only has nothing to measure with --passages {passages}")
    if passages == "gold-among-others" and k is None:
        raise ImpRAGError("--passages gold-among-others needs --k: the number of passages")
    own = chosen in BY_MODEL and not given
    if own and (corpus is not None or query_template != "none"):
        raise ImpRAGError(
            "--corpus and --query-template are not for the model's own retrieval: it searches "
            "--index by the prompt"
        )
    weight = attention_score_bias
    again.check()
    if not own:
        where = "without the model's own retrieval"
        refuse_without_effect(where, attention_score_bias=weight, lexical_weight=lexical_weight)
        refuse_without_effect(where, **asdict(again))
    if given:
        oracle = query_template == "oracle"
        where = f"with --passages {passages}"
        refuse_without_effect(
            where, retrieval=retrieval, query_template=oracle, unanswerable=unanswerable
        )
    if passages == "none":
        where = "with --passages none"
        refuse_without_effect(where, k=k, in_context=in_context, kv_cache=kv_cache, corpus=corpus)
    if retrieval_only:
        where = "with --retrieval-only"
        refuse_without_effect(
            where,
            in_context=in_context,
            kv_cache=kv_cache,
            attention_score_bias=weight,
            unanswerable=unanswerable,
        )
        refuse_without_effect(where, **asdict(again))
    if in_context or baseline:
        where = (
            "with --in-context"
            if in_context
            else "on a baseline, which reads passages in the context"
        )
        refuse_without_effect(where, kv_cache=kv_cache, attention_score_bias=weight)
        refuse_without_effect(where, **asdict(again))
    if tasks and data is None and all(map(_is_file, tasks)):
        refuse_without_effect("on files", split=split)
    require_packages()
    examples = read_tasks(tasks or (), data=data, split=split)

    @cache
    def load_model() -> "ImpRAG":
        settings: dict[str, Any] = {} if weight is None else {"attention_score_bias": weight}
        if own:
            settings |= {"retrieval": retrieval, "lexical_weight": lexical_weight}
        precision = resumed_dtype(out, model.dtype)
        return replace(model, dtype=precision).load(index, kv_cache, **settings)

    def load_passages() -> "Corpus":
        if not retrieval_only:
            load_model()  # whose mistakes show before a retriever embeds or indexes the corpus
        return choose_corpus(corpus, index, data)

    if own:
        source = own_retrieval(load_model())
    elif passages == "none":
        source = no_passages()
    elif passages == "gold":
        source = gold_passages(load_passages())
    elif passages == "gold-among-others" and k is not None:
        source = gold_among(load_passages(), k)
    else:
        words = None
        if index is not None and corpus is None:
            words = IndexFolder.open(index)
        context = RetrieverContext(
            load_passages,
            lambda: implicit_retriever(load_model()),
            None if words is None else lambda: words.lexical,
        )
        source = text_retrieval(chosen, make_retriever(context), query_template)
    if unanswerable:
        source = without_gold(source)
    system = None if retrieval_only else load_model()
    results = run_evaluation(
        system,
        examples,
        out,
        source=source,
        k=k,
        in_context=in_context or (baseline is not None and not retrieval_only),
        **asdict(again),
        chat=chat,
        limit=limit,
        batch_size=_batch_size(system),
        name=model.model,
    )
    if json:
        print_json(results)
    else:
        print(results_table(results["tasks"]), end="")
    print(f"report: {out / REPORT}", file=sys.stderr)


def _is_file(task: str) -> bool:
    """Whether ``FILE`` or ``TASK=FILE`` names a file, rather than a dataset."""
    return expand_home(task.rpartition("=")[2]).is_file()


def _batch_size(rag: "ImpRAG | None") -> int:
    """Prompts in one batch: few where a CPU answers them, many where nothing is answered."""
    if rag is None:
        return 64
    return 8 if rag.model.device.type == "cpu" else 32
