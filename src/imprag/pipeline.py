"""The pipeline: a model with an index and its corpus; ask, retrieve, generate, stream."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.generation import Answer, AnswerStream, GenerationBatch, GenerationSettings
from imprag.index.folder import IndexFolder
from imprag.index.source import IndexSource
from imprag.io.files import expand_home
from imprag.kv_cache.cache import PassageKVCache
from imprag.kv_cache.manifest import states_fingerprint
from imprag.kv_cache.stores import DiskStore, Store
from imprag.model.confidence import Confidence
from imprag.model.config import ImpRAGConfig
from imprag.model.fitted import fitted_index, fitted_to_default
from imprag.model.inputs import by_length
from imprag.model.load import (
    BASELINE,
    DEFAULT,
    load_pretrained,
    push_to_hub,
    save_pretrained,
)
from imprag.model.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.question import asked_prompts
from imprag.model.schedule import PassagesKept
from imprag.retrieval.gate import Gate
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.retrieval.registry import RETRIEVERS, RetrieverContext
from imprag.retrieval.retriever import RetrievedPassage, Retriever

__all__ = ["Answer", "AnswerStream", "ImpRAG"]


class ImpRAG:
    """A model that retrieves, reads and answers in one pass of the prompt.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        index: the index folder; without one, prompts read only passages that the caller passes.
        name: name of the model in messages; by default its base model's.
        retrieval: ``"implicit"``, ``"hybrid"``, ``"lexical"``, ``"dense"`` or a registered name;
            by default hybrid if the model has a gate, otherwise implicit.
        lexical_weight: for hybrid retrieval, the weight of the prompt's words in place of the gate.

    Attributes:
        retrieval: the name of what retrieves.
        kv_cache: the cache of passage KV; without :meth:`use_kv_cache`, it encodes passages when
            they are read.

    Example:
        >>> rag = ImpRAG.from_pretrained("default")  # doctest: +SKIP
        >>> rag.ask("Q: what is the capital of Chad? A:").text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        index: IndexFolder | None = None,
        *,
        name: str | None = None,
        retrieval: str | None = None,
        lexical_weight: float | None = None,
    ) -> None:
        self.model = model
        self._name = name or model.config.base_model
        self.tokenizer = tokenizer
        self.encoder = PassageEncoder(model, tokenizer)
        self._retriever: tuple[IndexFolder | None, Retriever] | None = None
        self.retrieval = retrieval or _own_retrieval(model.config, lexical_weight)
        _check_settings(model.config, self.retrieval, lexical_weight)
        self._lexical_weight = lexical_weight
        self._source = IndexSource(self.encoder, self._name, model.config.base_model, index)
        self.kv_cache = PassageKVCache(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT,
        index: Path | str | None = None,
        kv_cache: Path | str | None = None,
        *,
        retrieval: str | None = None,
        lexical_weight: float | None = None,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        **settings: Any,
    ) -> "ImpRAG":
        """Load a model and, if given, an index made by ``imprag index`` with the same model.

        Args:
            name_or_path: ``"default"``, or a model for :func:`imprag.model.load_pretrained`.
            index: an index folder. By default a model uses the index that ``imprag adapt`` fitted
                it to, and the default model uses the built-in corpus ``default`` with its shipped
                embeddings.
            kv_cache: a folder made by ``imprag kv build`` with the same model and index.
            retrieval, lexical_weight: as for the class.
            dtype, device: as for :func:`imprag.model.load_base_model`.
            **settings: replace settings of the model's ``ImpRAGConfig``.

        Raises:
            ImpRAGError: the model, the index or the KV cache does not exist, or they do not belong
                together.
        """
        folder = expand_home(name_or_path)
        is_default = str(name_or_path) == DEFAULT or fitted_to_default(folder)
        model, tokenizer = load_pretrained(name_or_path, dtype, device, **settings)
        fitted = fitted_index(folder)
        if index is None and fitted is not None and fitted.is_dir():
            index = fitted
        opened = None if index is None else IndexFolder.open(Path(index))
        choice: dict[str, Any] = {"retrieval": retrieval, "lexical_weight": lexical_weight}
        rag = cls(model, tokenizer, opened, name=str(name_or_path), **choice)
        rag._source.fitted = fitted
        rag._source.built_in = is_default
        if kv_cache is not None:
            rag.use_kv_cache(kv_cache)
        return rag

    @property
    def config(self) -> ImpRAGConfig:
        """The model's settings."""
        return self.model.config

    @property
    def fitted_index(self) -> Path | None:
        """The folder that ``imprag adapt`` fitted the model to, if any; it is the default index."""
        return self._source.fitted

    @property
    def corpus(self) -> Corpus:
        """The corpus that prompts retrieve from.

        Raises:
            ImpRAGError: there is no index.
        """
        return self._source.corpus

    @property
    def index(self) -> IndexFolder:
        """The index that prompts retrieve from, in its latest state.

        For the default model it is built on first use.

        Raises:
            ImpRAGError: there is no index.
        """
        return self._source.index

    @property
    def retriever(self) -> Retriever:
        """What retrieves from :attr:`index`.

        Raises:
            ImpRAGError: there is no index, it lacks the lexical part that was asked for, or the
                model was trained as a baseline.
        """
        if (expand_home(self._name) / BASELINE).is_file():
            raise ImpRAGError(
                f"{self._name} is a baseline, which was trained to read passages in its context "
                "and not in layers b..t; evaluate it with imprag eval"
            )
        if self._retriever is None or self._retriever[0] is not self._source.latest():
            made = make_retriever(self, self.retrieval, self._lexical_weight)
            self._retriever = self._source.folder, made
        return self._retriever[1]

    def use_kv_cache(self, kv_cache: Store | Path | str) -> None:
        """Read passages from a KV cache.

        Args:
            kv_cache: a folder that ``imprag kv build`` made with the same model, or a store such as
                :class:`~imprag.kv_cache.RamStore`. Passages that it lacks are encoded when they are
                read.

        Raises:
            ImpRAGError: the KV cache does not exist or belongs to another model, or the model does
                not encode passages independently.
        """
        if isinstance(kv_cache, Path | str):
            kv_cache = DiskStore(kv_cache)
        if isinstance(kv_cache, DiskStore):
            _check_store(self, kv_cache, ["--model", self._name], self._source.folder)
        self.kv_cache = PassageKVCache(self.model, self.tokenizer, kv_cache)

    def retrieve(
        self, prompts: Sequence[str], k: int | None = None, *, chat: bool = False, raw: bool = False
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for each prompt, from a pass through layers 0..b.

        Args:
            prompts: texts, as for :meth:`generate`; none may be empty.
            k: number of passages per prompt; by default the configured number, or the size of the
                index if it is smaller.
            chat, raw: the template of each prompt, as in :meth:`generate`.

        Raises:
            ImpRAGError: a prompt is empty or too long, k is larger than the index, or there is
                no index.
        """
        prompts = self.asked_prompts(prompts, chat=chat, raw=raw)
        return self.retriever.retrieve(prompts, self.passages_to_read(k))

    def ask(
        self,
        prompt: str,
        k: int | None = None,
        *,
        passages: Sequence[RetrievedPassage] | None = None,
        **generate_arguments: Any,
    ) -> Answer:
        """Answer one prompt; see :meth:`generate`."""
        if not isinstance(prompt, str):
            raise ImpRAGError("ask takes one prompt as a string; use generate for several")
        given = None if passages is None else [passages]
        return self.generate([prompt], k, passages=given, **generate_arguments)[0]

    def generate(
        self,
        prompts: Sequence[str],
        k: int | None = None,
        *,
        passages: Sequence[Sequence[RetrievedPassage]] | None = None,
        retrieve: str | None = None,
        passages_kept: PassagesKept | None = None,
        max_new_tokens: int = 32,
        stop: Sequence[str] | str | None = ("\n",),
        chat: bool = False,
        raw: bool = False,
        batch_size: int = 8,
        attribution: bool = False,
        min_confidence: float | None = None,
        **generate_arguments: Any,
    ) -> list[Answer]:
        """Retrieve, read and answer, in one pass of each prompt through the model.

        Args:
            prompts: texts; none may be empty.
            k: passages to retrieve for each; 0 answers without any; if not given, the configured
                number, or all passages of an index that has fewer.
            passages: read these, for each prompt, instead of retrieving. The setting
                ``attention_score_bias`` applies to a prompt's passages if all of them come from
                the model's own retriever.
            retrieve: when the answer retrieves: ``once``, at the end of the prompt; ``every:N``,
                also after every N new tokens; ``on:SEPARATOR``, also whenever the answer's text
                contains the separator once more, as in ``on:;``. By default the model's setting;
                ``once`` if passages are given or k is 0.
            passages_kept: whether a later retrieval's passages are read ``beside`` the former ones
                or ``instead`` of them; by default the model's setting.
            max_new_tokens: the most new tokens of an answer.
            stop: strings that end an answer and are not part of it. White space before an answer
                does not end it. With None, only the end token and ``max_new_tokens`` do.
            chat: put each prompt into the chat template of the model's tokenizer; for a model that
                follows instructions.
            raw: read each prompt as it is. By default, plain questions are put into the model's
                ``question_template``.
            batch_size: number of prompts in a batch; prompts of similar length share one.
            attribution: also say how much each passage was read for each token of the answer,
                from the same pass (:class:`imprag.model.attribution.Attribution`). Not for beam
                search.
            min_confidence: also say how likely each answer is right (``Answer.confidence``), and
                answer "not found in the corpus" where that is less. 0 gives all answers. For models
                with a fitted confidence; not for beam search. A stream gives its answer at the end.
            **generate_arguments: arguments of Hugging Face ``generate`` (``do_sample``,
                ``num_beams`` ...); greedy by default. :mod:`imprag.model.generate_arguments` lists
                those that work with retrieval inside the prompt's pass; others are refused.

        Returns:
            one answer per prompt, in order.

        Raises:
            ImpRAGError: a prompt is empty or too long, k is larger than the index, there is no
                index, or an argument does not work with retrieval.
        """
        prompts = self.asked_prompts(prompts, chat=chat, raw=raw)
        judging = attribution, min_confidence
        settings = GenerationSettings.of(max_new_tokens, stop, generate_arguments, *judging)
        retrieves = passages is None and k != 0
        schedule = self.config.schedule(retrieve, passages_kept, retrieves=retrieves)
        if batch_size < 1:
            raise ImpRAGError(f"batch_size must be at least 1, not {batch_size}")
        if passages is not None and len(passages) != len(prompts):
            raise ImpRAGError(f"there are {len(prompts)} prompts, but passages for {len(passages)}")
        answers: dict[int, Answer] = {}
        for batch in by_length(prompts, batch_size):
            given = None if passages is None else [passages[n] for n in batch]
            run = GenerationBatch(self, [prompts[n] for n in batch], k, given, settings, schedule)
            answers.update(zip(batch, run.answers(run.generate()), strict=True))
        return [answers[n] for n in range(len(prompts))]

    def stream(
        self,
        prompt: str,
        k: int | None = None,
        *,
        passages: Sequence[RetrievedPassage] | None = None,
        max_new_tokens: int = 32,
        stop: Sequence[str] | str | None = ("\n",),
        chat: bool = False,
        raw: bool = False,
        retrieve: str | None = None,
        passages_kept: PassagesKept | None = None,
        attribution: bool = False,
        min_confidence: float | None = None,
        **generate_arguments: Any,
    ) -> AnswerStream:
        """Stream the answer to one prompt; arguments as for :meth:`generate`.

        Generation runs in its own thread. It stops at the next token when the answer has ended or
        the iterator is closed, for example by leaving a loop over it. Its ``answer`` is what
        :meth:`ask` returns, once the last piece has come.
        """
        if not isinstance(prompt, str):
            raise ImpRAGError("stream takes one prompt as a string")
        judging = attribution, min_confidence
        settings = GenerationSettings.of(max_new_tokens, stop, generate_arguments, *judging)
        if settings.arguments.setdefault("num_beams", 1) != 1:
            raise ImpRAGError("num_beams: beam search cannot be streamed; use generate")
        given = None if passages is None else [passages]
        prompts = self.asked_prompts([prompt], chat=chat, raw=raw)
        schedule = self.config.schedule(retrieve, passages_kept, retrieves=given is None and k != 0)
        return AnswerStream(GenerationBatch(self, prompts, k, given, settings, schedule).stream())

    def save_pretrained(self, folder: Path | str) -> None:
        """Save the settings and the weights, or the adapter, in a new folder."""
        save_pretrained(self.model, self.tokenizer, Path(folder))

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Upload the files of :meth:`save_pretrained` to the Hugging Face hub.

        Returns:
            the URL of the commit.
        """
        return push_to_hub(self.model, self.tokenizer, repository, private=private)

    def asked_prompts(
        self, prompts: Iterable[str], *, chat: bool = False, raw: bool = False
    ) -> list[str]:
        """The checked prompts, marked for the template that the model reads each of them in."""
        template = self.config.question_template
        return asked_prompts(prompts, template, self.tokenizer, chat=chat, raw=raw)

    def passages_to_read(self, k: int | None = None) -> int:
        """Number of passages that a prompt retrieves; see :meth:`ImpRAGConfig.passages_to_read`."""
        return 0 if k == 0 else self.config.passages_to_read(k, len(self.index.index))


def implicit_retriever(rag: ImpRAG) -> ImplicitRetriever:
    """The model's own retriever, whatever the pipeline retrieves by.

    Raises:
        ImpRAGError: there is no index.
    """
    return ImplicitRetriever(rag.model, rag.tokenizer, rag.index)


def _check_store(
    rag: ImpRAG, kv_cache: DiskStore, source: Sequence[str], index: IndexFolder | None
) -> None:
    """Refuse a KV cache of another model; note on standard error one of other passages.

    Args:
        rag: the pipeline.
        kv_cache: the folder.
        source: options of the command that makes it, which name the model.
        index: the pipeline's, if it has been given.
    """
    options = shlex.join([*source, *(["--index", str(index.path)] if index else [])])
    fingerprint = states_fingerprint(rag.model, rag.tokenizer)
    kv_cache.manifest.check(kv_cache.path, model_fingerprint=fingerprint, source=options)
    if kv_cache.manifest.corpus_fingerprint != rag.corpus.fingerprint:
        chosen = "--top-passages N --prompts FILE " if kv_cache.manifest.selection else ""
        print(
            f"note: the KV cache {kv_cache.path} was made from other passages than the index "
            "holds; those that it lacks are encoded when they are read. Add them with: imprag "
            f"kv build {options} --out {kv_cache.path} {chosen}--update",
            file=sys.stderr,
        )


def make_retriever(rag: ImpRAG, name: str, lexical_weight: float | None) -> Retriever:
    """The retriever of that name over the pipeline's index.

    Args:
        rag: the pipeline.
        name: as ``retrieval`` of :class:`ImpRAG`.
        lexical_weight: for hybrid retrieval, the weight of the prompt's words in place of the gate.

    Raises:
        ImpRAGError: there is no such retriever, the index lacks the lexical part that it needs, or
            the lexical weight has no effect.
    """
    _check_settings(rag.config, name, lexical_weight)
    fitted = rag.config.gate

    def gate() -> Gate:
        if lexical_weight is None and fitted is not None:
            return Gate.from_json(fitted)
        return Gate.fixed(1.0 if lexical_weight is None else lexical_weight)

    context = RetrieverContext(
        lambda: rag.corpus, lambda: implicit_retriever(rag), lambda: rag.index.lexical, gate
    )
    return RETRIEVERS.find(name)(context)


def _own_retrieval(config: ImpRAGConfig, lexical_weight: float | None) -> str:
    """How a model retrieves if nobody says: with the words if it knows what they weigh."""
    return "implicit" if config.gate is None and lexical_weight is None else "hybrid"


def _check_settings(config: ImpRAGConfig, name: str, lexical_weight: float | None) -> None:
    """Refuse an unknown retriever, bad weights in the model, a lexical weight without effect."""
    RETRIEVERS.find(name)
    if config.confidence is not None:
        Confidence.from_json(config.confidence)
    if config.gate is not None:
        Gate.from_json(config.gate)
    if lexical_weight is not None:
        Gate.fixed(lexical_weight)
        if name != "hybrid":
            raise ImpRAGError(f"lexical_weight is for hybrid retrieval, not for {name}")
