"""``imprag ask`` and ``imprag search``."""

import contextlib
import dataclasses
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.cli.options import Device, Dtype, Flag, Json, Model, refuse_without_effect
from imprag.corpus.prompt_files import prompts_of_standard_input
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts

if TYPE_CHECKING:
    from imprag.corpus import Corpus
    from imprag.model.config import ImpRAGConfig
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
        model = functools.cache(lambda: self._load_model(kv_cache))
        retriever = None if self.retriever == "self" else self._make_retriever(model)
        return model(), retriever

    def load_retriever(self) -> "tuple[Retriever, ImpRAGConfig]":
        """What retrieves, and the model's settings; the model is loaded only if it is needed."""
        model = functools.cache(lambda: self._load_model(None))
        retriever = self._make_retriever(model)
        from imprag.model.load import read_config

        return retriever, read_config(self.model) or model().config

    def _make_retriever(self, model: "Callable[[], ImpRAG]") -> "Retriever":
        from imprag.retrieval.registry import RETRIEVERS, RetrieverContext

        context = RetrieverContext(self._corpus, lambda: model().retriever)
        return RETRIEVERS.find(self.retriever)(context)

    def _load_model(self, kv_cache: Path | None) -> "ImpRAG":
        from imprag.pipeline import ImpRAG

        rag = ImpRAG.from_pretrained(
            self.model, self.index, kv_cache, dtype=self.dtype, device=self.device
        )
        if not rag.config.trained:
            print(
                f"note: {rag.config.base_model} has not been trained to retrieve or read: its own "
                "retrieval is near random. --retriever teacher finds passages by their text.",
                file=sys.stderr,
            )
        return rag

    def _corpus(self) -> "Corpus":
        from imprag.corpus import load_corpus
        from imprag.index.folder import IndexFolder

        index = self.index or self._fitted_index()
        return load_corpus("default") if index is None else IndexFolder.open(index).corpus

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


def _start(source: Source | None, prompt: str, chat: bool) -> tuple[Source, Iterator[list[str]]]:
    """The source and the batches of prompts, which are checked before anything is loaded."""
    source = source or Source()
    prompts = _prompts(prompt, chat=chat)
    with _uncollected():
        import imprag.pipeline  # noqa: F401
    source.note_fitted_index()
    return source, prompts


def ask(
    prompt: Prompt,
    /,
    *,
    source: Source | None = None,
    kv_cache: Path | None = None,
    max_new_tokens: int = 32,
    chat: Flag = False,
    json: Json = False,
) -> None:
    """Answer a prompt and show the passages that the model read.

    For example:

    - `imprag ask "Q: what is the capital of Chad? A:"`
    - `imprag ask - --json < prompts.txt > answers.jsonl`
    - `imprag ask -`, to type one prompt after another: only the first waits for the model.

    Args:
        prompt: The text that the model continues, as in "Q: what is the capital of Chad? A:"; `-`
            reads one prompt per line from standard input, at a terminal until Ctrl-D.
        kv_cache: A KV cache made by `imprag kv build` with the same model and index: passages are
            read from it. If not given, they are encoded for each prompt, which takes longer.
        max_new_tokens: Greatest length of the answer in tokens.
        chat: Put the prompt into the model's own chat template. For instruct models.
        json: Print one JSON object per prompt instead of text.
    """
    source, prompts = _start(source, prompt, chat)
    if source.k == 0:
        refuse_without_effect("with --k 0", kv_cache=kv_cache)
    rag, retriever = source.load(kv_cache)
    for batch in prompts:
        passages = None
        if retriever is not None and source.k != 0:
            k = rag.config.passages_to_read(source.k, len(retriever.corpus))
            passages = retriever.retrieve(batch, k)
        for answer in rag.generate(
            batch, source.k, passages=passages, max_new_tokens=max_new_tokens
        ):
            if json:
                _print_json(answer.prompt, answer.passages, answer.timings, answer=answer.text)
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
    json: Json = False,
) -> None:
    """Show the passages that a prompt retrieves.

    For example:

    - `imprag search "Chad [SEP] capital" --index wiki-index --k 5`
    - `imprag search - --json < prompts.txt > passages.jsonl`

    Args:
        prompt: The text whose last hidden state gives the query embedding; `-` reads one prompt per
            line from standard input.
        chat: Put the prompt into the model's own chat template, as `imprag ask --chat` does.
        json: Print one JSON object per prompt instead of text.
    """
    import time

    source, prompts = _start(source, prompt, chat)
    retriever, config = source.load_retriever()
    k = config.passages_to_read(source.k, len(retriever.corpus))
    for batch in prompts:
        start = time.perf_counter()
        found = retriever.retrieve(batch, k)
        timings = {"total": time.perf_counter() - start}
        for text, passages in zip(batch, found, strict=True):
            if json:
                _print_json(text, passages, timings)
            else:
                _print_passages(text, passages)
                print(flush=True)


def _prompts(prompt: str, *, chat: bool = False) -> Iterator[list[str]]:
    """Batches of prompts: the one given, or the lines of standard input."""
    if prompt != "-":
        check_prompts([prompt])
        batches: Iterable[list[str]] = [[prompt]]
    else:
        # At a terminal, each prompt is answered before the next is typed.
        batches = _batches(prompts_of_standard_input(), 1 if sys.stdin.isatty() else BATCH)
    if not chat:
        return iter(batches)
    from imprag.model.chat import ChatPrompt

    return ([ChatPrompt(one) for one in batch] for batch in batches)


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
    **answer: Any,
) -> None:
    found = [
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
    value = {"prompt": prompt, **answer, "passages": found, "timings": timings}
    print_json(value)


def _print_passages(prompt: str, passages: "list[RetrievedPassage]") -> None:
    print(prompt)
    for rank, found in enumerate(passages, start=1):
        text = found.passage.text.replace("\n", " ")
        short = text if len(text) <= 160 else text[:159] + "…"
        print(f"{rank:4d}. {found.score:7.3f}  [{found.passage.title}] {short}")
