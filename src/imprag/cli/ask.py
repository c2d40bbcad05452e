"""``imprag ask`` and ``imprag search``."""

import contextlib
import dataclasses
import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.cli.options import Device, Dtype, Flag, Json, Model
from imprag.corpus.prompt_files import prompts_of_standard_input
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts

if TYPE_CHECKING:
    from imprag.corpus import Corpus
    from imprag.pipeline import ImpRAG
    from imprag.retrieval import RetrievedPassage, Retriever

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
    retriever: str = "self"
    """What retrieves: `self`, the model's lower layers; by the prompt's text `teacher`
    (all-MiniLM-L6-v2) or `bm25`; or one that an installed package adds."""
    dtype: Dtype = "auto"
    device: Device = "auto"

    def load(self, kv_cache: Path | None = None) -> "tuple[ImpRAG, Retriever | None]":
        """The model, and what retrieves in the place of its lower layers."""
        from imprag.retrieval.registry import RETRIEVERS, RetrieverContext

        make = RETRIEVERS.find(self.retriever)
        model = functools.cache(lambda: self._load_model(kv_cache))
        context = RetrieverContext(lambda: self._corpus(model()), lambda: model().retriever)
        retriever = None if self.retriever == "self" else make(context)
        return model(), retriever

    def _load_model(self, kv_cache: Path | None) -> "ImpRAG":
        with _uncollected():
            from imprag.pipeline import ImpRAG

        rag = ImpRAG.from_pretrained(
            self.model, self.index, kv_cache, dtype=self.dtype, device=self.device
        )
        if self.index is None and rag.fitted_index is not None:
            print(
                f"note: retrieving from {rag.fitted_index}, which {self.model} was fitted to; "
                "--index chooses another",
                file=sys.stderr,
            )
        if not rag.config.trained:
            print(
                f"note: {rag.config.base_model} has not been trained to retrieve or read: its own "
                "retrieval is near random. --retriever teacher finds passages by their text.",
                file=sys.stderr,
            )
        return rag

    def _corpus(self, rag: "ImpRAG") -> "Corpus":
        from imprag.corpus import load_corpus

        return rag.corpus if self.index or rag.fitted_index else load_corpus("default")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Import without garbage collection, which would take 1.6 s and find nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


Prompt = Annotated[str, Parameter(allow_leading_hyphen=True)]
Raw = Annotated[
    bool,
    Parameter(
        negative="",
        help="Read the prompt as it is. By default, a plain question is put into the question "
        'template that the model was trained with, such as "Q: ... A:".',
    ),
]


def _start(
    source: Source | None, prompt: str, *, chat: bool, raw: bool, kv_cache: Path | None = None
) -> "tuple[Source, Iterable[list[str]], ImpRAG, Retriever | None]":
    """The source, the batches of prompts and what answers them; prompts are checked first."""
    source = source or Source()
    batches = _prompts(prompt)
    rag, retriever = source.load(kv_cache)
    prompts = (rag.asked_prompts(batch, chat=chat, raw=raw) for batch in batches)
    return source, prompts, rag, retriever


def ask(
    prompt: Prompt,
    /,
    *,
    source: Source | None = None,
    kv_cache: Path | None = None,
    max_new_tokens: int = 32,
    chat: Flag = False,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Answer a prompt and show the passages that the model read.

    For example:

    - `imprag ask "what's the capital of Chad?"`
    - `imprag ask - --json < prompts.txt > answers.jsonl`
    - `imprag ask -`, to type one prompt after another: only the first waits for the model.

    Args:
        prompt: A question, or the text that the model continues, as in "Chad [SEP] capital A:"; `-`
            reads one prompt per line from standard input, at a terminal until Ctrl-D.
        kv_cache: A KV cache made by `imprag kv build` with the same model and index: passages are
            read from it. If not given, they are encoded for each prompt, which takes longer.
        max_new_tokens: Greatest length of the answer in tokens.
        chat: Put the prompt into the model's own chat template. For instruct models.
        json: Print one JSON object per prompt instead of text.
    """
    source, prompts, rag, retriever = _start(source, prompt, chat=chat, raw=raw, kv_cache=kv_cache)
    for batch in prompts:
        passages = None
        if retriever is not None and source.k != 0:
            passages = retriever.retrieve(batch, _k(source, rag, retriever))
        for answer in rag.generate(
            batch, source.k, passages=passages, max_new_tokens=max_new_tokens, raw=True
        ):
            if json:
                _print_json(
                    answer.prompt,
                    answer.passages,
                    answer.timings,
                    model_prompt=answer.model_prompt,
                    answer=answer.text,
                )
            else:
                _print_passages(answer.prompt, answer.passages)
                print(f"\nanswer: {answer.text}\n", flush=True)
    if kv_cache is not None and rag.kv_cache.misses:
        cache = rag.kv_cache
        print(
            f"note: {cache.misses:,} of {cache.misses + cache.hits:,} passages were not in the KV "
            "cache and had to be encoded",
            file=sys.stderr,
        )


def search(
    prompt: Prompt,
    /,
    *,
    source: Source | None = None,
    chat: Flag = False,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Show the passages that a prompt retrieves.

    For example:

    - `imprag search "Chad [SEP] capital" --index wiki-index --k 5`
    - `imprag search - --json < prompts.txt > passages.jsonl`

    Args:
        prompt: A question, or the text whose last hidden state gives the query embedding; `-` reads
            one prompt per line from standard input.
        chat: Put the prompt into the model's own chat template, as `imprag ask --chat` does.
        json: Print one JSON object per prompt instead of text.
    """
    import time

    from imprag.model.text import text_read

    source, prompts, rag, retriever = _start(source, prompt, chat=chat, raw=raw)
    for batch in prompts:
        start = time.perf_counter()
        k = _k(source, rag, retriever)
        found = (
            rag.retrieve(batch, k, raw=True) if retriever is None else retriever.retrieve(batch, k)
        )
        timings = {"total": time.perf_counter() - start}
        for text, passages in zip(batch, found, strict=True):
            if json:
                read = text_read(rag.tokenizer, text)
                _print_json(text, passages, timings, model_prompt=read)
            else:
                _print_passages(text, passages)
                print(flush=True)


def _k(source: Source, rag: "ImpRAG", retriever: "Retriever | None") -> int:
    corpus = rag.corpus if retriever is None else retriever.corpus
    return rag.config.passages_to_read(source.k, len(corpus))


def _prompts(prompt: str) -> Iterable[list[str]]:
    """Batches of prompts: the one given, or the lines of standard input."""
    if prompt != "-":
        check_prompts([prompt])
        return [[prompt]]
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
    **texts: str,
) -> None:
    found = [
        {"id": p.passage.id, "title": p.passage.title, "text": p.passage.text, "score": p.score}
        for p in passages
    ]
    value = {"prompt": prompt, **texts, "passages": found, "timings": timings}
    print_json(value)


def _print_passages(prompt: str, passages: "list[RetrievedPassage]") -> None:
    print(prompt)
    for rank, found in enumerate(passages, start=1):
        text = found.passage.text.replace("\n", " ")
        short = text if len(text) <= 160 else text[:159] + "…"
        print(f"{rank:4d}. {found.score:7.3f}  [{found.passage.title}] {short}")
