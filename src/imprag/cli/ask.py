"""``imprag ask`` and ``imprag search``."""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.cli.first_use import corpus_meanwhile
from imprag.cli.imports import quick_imports
from imprag.cli.options import (
    BY_MODEL,
    NO_KV_CACHE,
    OWN_SCHEDULE,
    AskingAgain,
    Device,
    Dtype,
    Flag,
    Json,
    KVCache,
    LexicalWeight,
    MinConfidence,
    Model,
    Retrieval,
    refuse_without_effect,
    use_kv_cache,
)
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts

if TYPE_CHECKING:
    from imprag.corpus import Corpus
    from imprag.index.folder import IndexFolder
    from imprag.index.lexical import LexicalIndex
    from imprag.model.config import ImpRAGConfig
    from imprag.pipeline import Answer, ImpRAG
    from imprag.retrieval import RetrievedPassage, Retriever
    from imprag.retrieval.hybrid import HybridRanking

BATCH = 8


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where answers come from."""

    model: Model = "default"
    index: Path | None = None
    """The index folder to retrieve from, made by `imprag index` with the same model. If not given,
    the one that `imprag adapt` fitted the model to, or the built-in corpus of the default model."""
    k: int | None = None
    """Number of passages to retrieve; the model's own number if not given. Fewer are faster."""
    retrieval: Retrieval = None
    dtype: Dtype = "auto"
    device: Device = "auto"

    @property
    def by_model(self) -> bool:
        """Whether the model itself retrieves, with or without the words."""
        return self.retrieval is None or self.retrieval in BY_MODEL

    def load_text_retriever(self) -> "tuple[Retriever, ImpRAGConfig]":
        """What retrieves by the prompts' text, and the model's settings.

        The model is loaded only if the retriever asks for it or nothing else has its settings.
        """
        from imprag.model.load import read_config
        from imprag.pipeline import implicit_retriever
        from imprag.retrieval.registry import RETRIEVERS, RetrieverContext

        model = functools.cache(self.load)
        context = RetrieverContext(
            self._corpus, lambda: implicit_retriever(model()), self._lexical_index
        )
        retriever = RETRIEVERS.find(self.retrieval or "implicit")(context)
        return retriever, read_config(self.model) or model().config

    def load(self, lexical_weight: float | None = None) -> "ImpRAG":
        """The model with what it retrieves by."""
        from imprag.pipeline import ImpRAG

        with corpus_meanwhile(self.model, self.index, self.k):
            rag = ImpRAG.from_pretrained(
                self.model,
                self.index,
                retrieval=self.retrieval,
                lexical_weight=lexical_weight,
                dtype=self.dtype,
                device=self.device,
            )
        if not rag.config.trained and self.by_model:
            print(
                f"note: {rag.config.base_model} has not been trained to retrieve or read: its own "
                "retrieval is near random. --retrieval lexical finds passages by their words.",
                file=sys.stderr,
            )
        return rag

    def _corpus(self) -> "Corpus":
        from imprag.corpus import load_corpus

        folder = self._index_folder
        return load_corpus("default") if folder is None else folder.corpus

    def _lexical_index(self) -> "LexicalIndex":
        """The lexical index of the index folder; without a folder, one in the cache folder."""
        from imprag.retrieval.lexical import cached_lexical_index

        folder = self._index_folder
        return cached_lexical_index(self._corpus()) if folder is None else folder.lexical

    @functools.cached_property
    def _index_folder(self) -> "IndexFolder | None":
        from imprag.index.folder import IndexFolder

        index = self.index or self._fitted_index()
        return None if index is None else IndexFolder.open(index)

    def _fitted_index(self) -> Path | None:
        """The index that the model was fitted to."""
        from imprag.io.files import expand_home
        from imprag.model.fitted import fitted_index

        return fitted_index(expand_home(self.model))

    def note_fitted_index(self) -> None:
        """Say on standard error where passages come from if no option does."""
        if self.index is None and (fitted := self._fitted_index()) is not None:
            print(
                f"note: retrieving from {fitted}, which {self.model} was fitted to; "
                "--index chooses another",
                file=sys.stderr,
            )


Prompt = Annotated[str, Parameter(allow_leading_hyphen=True)]


Raw = Annotated[
    bool,
    Parameter(
        negative="",
        help="Read the prompt as it is. By default, a plain question is put into the question "
        'template that the model was trained with, such as "Q: ... A:".',
    ),
]


def _start(source: Source | None, prompt: str) -> tuple[Source, Iterable[list[str]]]:
    """The source and the batches of prompts, which are checked before anything is loaded."""
    source = source or Source()
    prompts = _prompts(prompt)
    with quick_imports():
        import imprag.pipeline  # noqa: F401
    source.note_fitted_index()
    return source, prompts


def _note_other_passages(source: Source) -> None:
    """Say on standard error that the confidence was fitted to other passages."""
    if not source.by_model or source.k == 0:
        print(
            "note: the confidence was fitted to answers from the model's own retrieval; others "
            "have less of it, and --min-confidence withholds more of them",
            file=sys.stderr,
        )


def ask(
    prompt: Prompt,
    /,
    *,
    source: Source | None = None,
    again: AskingAgain = OWN_SCHEDULE,
    kv_cache: KVCache = None,
    max_new_tokens: int = 32,
    chat: Flag = False,
    raw: Raw = False,
    cite: Flag = False,
    min_confidence: MinConfidence = None,
    json: Json = False,
) -> None:
    """Answer a prompt and show the passages that the model read.

    For example:

    - `imprag ask "what's the capital of Chad?"`
    - `imprag ask "when did Ghana become independent?" --cite`
    - `imprag ask "how high is the highest point of Nepal?" --retrieve every:4`
    - `imprag ask - --json < prompts.txt > answers.jsonl`
    - `imprag ask -`, to type one prompt after another: only the first waits for the model.

    Args:
        prompt: A question, or the text that the model continues, as in "Chad [SEP] capital A:"; `-`
            reads one prompt per line from standard input, at a terminal until Ctrl-D.
        max_new_tokens: Greatest length of the answer in tokens.
        chat: Put the prompt into the model's own chat template. For instruct models.
        cite: Name the passages that carried the answer, each with its share of the attention that
            the answer's tokens paid. With `--json`, the shares of all passages for each token.
        json: Print one JSON object per prompt instead of text.
    """
    source, prompts = _start(source, prompt)
    if source.k == 0:
        refuse_without_effect("with --k 0", kv_cache=kv_cache, **dataclasses.asdict(again))
    again.check()
    rag = source.load()
    if min_confidence is not None:
        _note_other_passages(source)
    if source.k != 0:
        use_kv_cache(rag, kv_cache)
    for batch in prompts:
        for answer in rag.generate(
            batch,
            source.k,
            max_new_tokens=max_new_tokens,
            chat=chat,
            raw=raw,
            attribution=cite,
            min_confidence=min_confidence,
            **dataclasses.asdict(again),
        ):
            if json:
                more: dict[str, Any] = {}
                if answer.attribution is not None:
                    more["attribution"] = answer.attribution.to_json()
                if answer.confidence is not None:
                    for name in ("confidence", "evidence", "abstained"):
                        more[name] = getattr(answer, name)
                _print_json(
                    answer.prompt,
                    answer.passages,
                    answer.timings,
                    model_prompt=answer.model_prompt,
                    answer=answer.text,
                    kv_cache={"hits": answer.kv_hits, "misses": answer.kv_misses},
                    retrievals=[
                        {
                            "tokens": one.tokens,
                            "written": one.written,
                            "passages": [found.passage.id for found in one.passages],
                        }
                        for one in answer.retrievals
                    ],
                    **more,
                )
            else:
                _print_passages(answer.prompt, answer.passages)
                for one in answer.retrievals[1:]:
                    titles = "; ".join(found.passage.title for found in one.passages)
                    print(f"retrieved again after {one.written!r}: {titles}")
                print(f"\nanswer: {answer.text}{_citations(answer)}\n", flush=True)
    cache = rag.kv_cache
    if kv_cache not in (None, NO_KV_CACHE) and cache.misses:
        print(
            f"note: {cache.misses:,} of {cache.misses + cache.hits:,} passages were not in the KV "
            "cache and had to be encoded",
            file=sys.stderr,
        )


def _citations(answer: "Answer") -> str:
    """Marks of the passages that carried an answer, what they stand for, and the confidence."""
    attribution = answer.attribution
    confidence = answer.confidence
    known = "" if confidence is None else f"\n  confidence {confidence:.0%}"
    if attribution is None:
        return known
    cited = [(n, answer.passages[n].passage.title) for n in attribution.carried_by]
    marks = "".join(f" [{n + 1}]" for n, _ in cited)
    lines = [f"\n  [{n + 1}] {attribution.shares[n]:.1%} {title}" for n, title in cited]
    return marks + "".join(lines) + f"\n  own text {attribution.own:.1%}" + known


def search(
    prompt: Prompt,
    /,
    *,
    source: Source | None = None,
    lexical_weight: LexicalWeight = None,
    explain: Flag = False,
    chat: Flag = False,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Show the passages that a prompt retrieves.

    For example:

    - `imprag search "what's the capital of Chad?" --explain`
    - `imprag search "Chad [SEP] capital" --index wiki-index --k 5`
    - `imprag search - --json < prompts.txt > passages.jsonl`

    Args:
        prompt: A question, or the text whose last hidden state gives the query embedding; `-` reads
            one prompt per line from standard input.
        explain: For hybrid retrieval: also show the scores that each passage's score adds up, their
            weights for the prompt, and the weights of the prompt's words.
        chat: Put the prompt into the model's own chat template, as `imprag ask --chat` does.
        json: Print one JSON object per prompt instead of text.
    """
    import time

    from imprag.model.text import text_read
    from imprag.retrieval.hybrid import HybridRetriever

    source, prompts = _start(source, prompt)
    if explain and source.retrieval is None:
        source = dataclasses.replace(source, retrieval="hybrid")
    where = f"with --retrieval {source.retrieval}"
    if source.retrieval not in (None, "hybrid"):
        if explain:
            raise ImpRAGError("--explain is for hybrid retrieval: add --retrieval hybrid")
        refuse_without_effect(where, lexical_weight=lexical_weight)
    rag = None
    if source.by_model:
        rag = source.load(lexical_weight)
        retriever, config = rag.retriever, rag.config
    else:
        refuse_without_effect(where, chat=chat, raw=raw)
        retriever, config = source.load_text_retriever()
    k = config.passages_to_read(source.k, len(retriever.corpus))
    for batch in prompts:
        asked = batch if rag is None else rag.asked_prompts(batch, chat=chat, raw=raw)
        start = time.perf_counter()
        rankings: list[HybridRanking] | None = None
        if explain and isinstance(retriever, HybridRetriever):
            rankings = retriever.rank(asked, k)
            found = [ranking.passages for ranking in rankings]
        else:
            found = retriever.retrieve(asked, k)
        timings = {"total": time.perf_counter() - start}
        for n, (text, passages) in enumerate(zip(asked, found, strict=True)):
            ranking = rankings[n] if rankings else None
            if json:
                read = text if rag is None else text_read(rag.tokenizer, text)
                _print_json(text, passages, timings, ranking, model_prompt=read)
            else:
                _print_passages(text, passages, ranking)
                print(flush=True)


def _prompts(prompt: str) -> Iterable[list[str]]:
    """Batches of prompts: the one given, or the lines of standard input."""
    if prompt != "-":
        check_prompts([prompt])
        return [[prompt]]
    from imprag.corpus.prompt_files import prompts_of_standard_input

    # At a terminal, each prompt is answered before the next is typed.
    return _batches(prompts_of_standard_input(), 1 if sys.stdin.isatty() else BATCH)


def _batches(prompts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Prompts in batches; those before an invalid one are yielded before its error is raised."""
    batch: list[str] = []
    failure = None
    try:
        for prompt in prompts:
            batch.append(prompt)
            if len(batch) == size:
                yield batch
                batch = []
    except ImpRAGError as error:
        failure = error
    if batch:
        yield batch
    if failure:
        raise failure


def _print_json(
    prompt: str,
    passages: "list[RetrievedPassage]",
    timings: dict[str, float],
    ranking: "HybridRanking | None" = None,
    **facts: Any,
) -> None:
    from imprag.retrieval.gate import SCORES

    found: list[dict[str, Any]] = [
        {
            "id": p.passage.id,
            "title": p.passage.title,
            "text": p.passage.text,
            "row": p.row,
            "score": p.score,
            "kind": p.kind,
        }
        for p in passages
    ]
    value = {"prompt": prompt, **facts, "passages": found, "timings": timings}
    if ranking is not None:
        value["weights"] = dict(zip(SCORES, ranking.weights, strict=True))
        value["terms"] = dict(ranking.terms)
        for passage, scores in zip(found, ranking.scores.T.tolist(), strict=True):
            passage["scores"] = dict(zip(SCORES, scores, strict=True))
    print_json(value)


def _print_passages(
    prompt: str, passages: "list[RetrievedPassage]", ranking: "HybridRanking | None" = None
) -> None:
    from imprag.retrieval.gate import SCORES

    print(prompt)
    if ranking is not None:
        weights = zip(SCORES, ranking.weights, strict=True)
        print("weights: " + ", ".join(f"{name} {weight:.3f}" for name, weight in weights))
        terms = sorted(ranking.terms.items(), key=lambda item: -item[1])
        print("words: " + ", ".join(f"{term} {weight:.2f}" for term, weight in terms[:20]))
    for rank, found in enumerate(passages, start=1):
        text = found.passage.text.replace("\n", " ")
        short = text if len(text) <= 160 else text[:159] + "…"
        scores = f"{found.score:7.3f}"
        if ranking is not None:
            parts = zip(SCORES, ranking.scores[:, rank - 1], strict=True)
            scores += " (" + ", ".join(f"{name} {score:.2f}" for name, score in parts) + ")"
        print(f"{rank:4d}. {scores}  [{found.passage.title}] {short}")
