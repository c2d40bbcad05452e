"""ImpRAG put together: a model, an index and its corpus; ask, retrieve, generate, stream."""

import shlex
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from imprag.corpus import Corpus, load_corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import Encoder, IndexFolder, RetrievedPassage
from imprag.index.stored_embeddings import OtherEmbeddingsError, StoredEmbeddings
from imprag.io.files import cache_dir, expand_home
from imprag.io.text_checks import check_prompts
from imprag.kv_cache.cache import PassageKVCache
from imprag.kv_cache.manifest import states_fingerprint
from imprag.kv_cache.stores import DiskStore, Store
from imprag.model.chat import ChatPrompt
from imprag.model.config import ImpRAGConfig
from imprag.model.fitted import fitted_index, fitted_to_default
from imprag.model.generate import fixed
from imprag.model.generate_arguments import CALLBACKS, CHOICES, check_arguments
from imprag.model.kv import PassageKV
from imprag.model.load import (
    DEFAULT,
    DEFAULT_FOLDER,
    EMBEDDINGS,
    load_pretrained,
    save_pretrained,
)
from imprag.model.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.text import prompt_batch


@dataclass(frozen=True)
class Answer:
    """What ImpRAG says to one prompt.

    Attributes:
        prompt: as given.
        answer: the new text, without the prompt and the stop string.
        passages: what was retrieved and read, best first.
        timings: seconds of the batch that the prompt was in: ``query`` (prompt through layers
            0..b-1), ``search``, ``encode`` (passages through layers 0..t, or out of the KV cache),
            ``generate`` (the rest of the prompt's pass and all new tokens), ``total``.
    """

    prompt: str
    answer: str
    passages: list[RetrievedPassage]
    timings: dict[str, float]


class ImpRAG:
    """A model that retrieves, reads and answers in one pass of the prompt.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        index: folder of passages and their embeddings; without one, prompts can only be answered
            with passages that the caller brings, or none.
        name: of the model, for messages; its base model's if not given.

    Attributes:
        kv_cache: gives what is read; without :meth:`use_kv_cache`, passages are encoded when they are.
        fitted_index: the index folder that ``imprag adapt`` fitted the model to, if it did; it is
            opened where no other is given.

    Example:
        >>> rag = ImpRAG.from_pretrained("default")  # doctest: +SKIP
        >>> rag.ask("Q: what is the capital of Chad? A:").answer  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        index: IndexFolder | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.model = model
        self._name = name or model.config.base_model
        self.tokenizer = tokenizer
        self.encoder = PassageEncoder(model, tokenizer)
        self._index = index
        self._default_corpus: str | None = None
        self.fitted_index: Path | None = None
        if index is not None:
            index.check_model(self.encoder.fingerprint(), self._name)
        self.kv_cache = PassageKVCache(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT,
        index: Path | str | None = None,
        kv_cache: Path | str | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        **settings: Any,
    ) -> "ImpRAG":
        """Load a model and, if given, an index made by ``imprag index`` with the same model.

        Args:
            name_or_path: ``"default"``, or what :func:`imprag.model.load_pretrained` takes.
            index: an index folder. If not given, a model uses the index that ``imprag adapt``
                fitted it to, and the default model the built-in corpus ``default``, whose
                embeddings come with it.
            kv_cache: a folder made by ``imprag kv build`` with the same model and index.
            dtype, device: as for :func:`imprag.model.load_base_model`.
            **settings: in place of those stored in the model's ``ImpRAGConfig``.

        Raises:
            ImpRAGError: no such model, index or KV cache, or they do not belong together.
        """
        folder = expand_home(name_or_path)
        is_default = str(name_or_path) == DEFAULT or fitted_to_default(folder)
        model, tokenizer = load_pretrained(name_or_path, dtype, device, **settings)
        fitted = fitted_index(folder)
        if index is None and fitted is not None and fitted.is_dir():
            index = fitted
        opened = None if index is None else IndexFolder.open(Path(index))
        rag = cls(model, tokenizer, opened, name=str(name_or_path))
        rag.fitted_index = fitted
        if is_default:
            rag._default_corpus = DEFAULT
        if kv_cache is not None:
            rag.use_kv_cache(kv_cache)
        return rag

    @property
    def config(self) -> ImpRAGConfig:
        """The model's settings."""
        return self.model.config

    @property
    def corpus(self) -> Corpus:
        """The passages that prompts retrieve from.

        Raises:
            ImpRAGError: there are none.
        """
        if self._index is not None:
            return self._index.corpus
        if self.fitted_index is not None:
            raise ImpRAGError(
                f"no index to retrieve from: the model was fitted to {self.fitted_index}, which is "
                "not there any more; pass the folder where it is now with --index DIR"
            )
        if self._default_corpus is None:
            raise ImpRAGError(
                "no index to retrieve from; make one with: imprag index CORPUS --model "
                f"{self.config.base_model} --out DIR, and pass it with --index DIR"
            )
        return load_corpus(self._default_corpus)

    @property
    def index(self) -> IndexFolder:
        """The passages that prompts retrieve from, with their embeddings.

        Raises:
            ImpRAGError: there are none.
        """
        if self._index is None:
            corpus = self.corpus
            fingerprint = self.encoder.fingerprint()  # reads all weights of layers 0..b
            folder = cache_dir() / "indexes" / f"{fingerprint[:12]}-{corpus.fingerprint[:12]}"
            encoder = self._shipped(corpus, fingerprint)
            self._index = IndexFolder.build(corpus, encoder, folder, overwrite=True)
        return self._index

    def _shipped(self, corpus: Corpus, fingerprint: str) -> Encoder:
        """The default model's stored embeddings, or itself where settings were changed."""
        try:
            return StoredEmbeddings(DEFAULT_FOLDER / EMBEDDINGS, corpus, fingerprint)
        except OtherEmbeddingsError:
            return self.encoder

    def use_kv_cache(self, kv_cache: Store | Path | str) -> None:
        """Read passages from stored states.

        Args:
            kv_cache: a folder that ``imprag kv build`` made with the same model and corpus, or
                a store such as :class:`~imprag.kv_cache.RamStore`.

        Raises:
            ImpRAGError: there is no such KV cache, it belongs to another model or corpus, or the
                model's passages are not encoded independently.
        """
        source = ["--model", self._name]
        if self._index is not None:
            source += ["--index", str(self._index.corpus.path.parent)]
        options = shlex.join(source)
        if isinstance(kv_cache, Path | str):
            kv_cache = DiskStore(kv_cache, self.corpus, options)
        if isinstance(kv_cache, DiskStore):
            fingerprint = states_fingerprint(self.model, self.tokenizer)
            kv_cache.manifest.check(kv_cache.path, model_fingerprint=fingerprint, source=options)
        self.kv_cache = PassageKVCache(self.model, self.tokenizer, kv_cache)

    def retrieve(
        self, prompts: Sequence[str], k: int | None = None, *, chat: bool = False
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, by its hidden state; layers 0..b only.

        Args:
            prompts: as they would be answered; none empty.
            k: passages for each; if not given, the configured number, or all passages of an index
                that has fewer.
            chat: put each prompt into the model's own chat template, as for :meth:`generate`.

        Raises:
            ImpRAGError: a prompt is empty or too long, k is larger than the index, or there is
                no index.
        """
        prompts = _asked(prompts, chat)
        k = self.passages_to_read(k)
        found: dict[int, list[RetrievedPassage]] = {}
        for batch in _packed(prompts):
            ids, mask = self._prompt_batch([prompts[n] for n in batch], room=0)
            with torch.inference_mode():
                queries = self.model.query_embeddings(ids, mask)
            rows = self.index.search(queries.cpu().numpy(), k)
            found.update(zip(batch, rows, strict=True))
        return [found[n] for n in range(len(prompts))]

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
            raise ImpRAGError("ask takes one prompt as a text; for several use generate")
        given = None if passages is None else [passages]
        return self.generate([prompt], k, passages=given, **generate_arguments)[0]

    def generate(
        self,
        prompts: Sequence[str],
        k: int | None = None,
        *,
        passages: Sequence[Sequence[RetrievedPassage]] | None = None,
        max_new_tokens: int = 32,
        stop: Sequence[str] | str | None = ("\n",),
        chat: bool = False,
        batch_size: int = 8,
        **generate_arguments: Any,
    ) -> list[Answer]:
        """Retrieve, read and answer, in one pass of each prompt through the model.

        Args:
            prompts: texts; none empty.
            k: passages to retrieve for each; 0 answers without any; if not given, the configured
                number, or all passages of an index that has fewer.
            passages: read these, for each prompt, instead of retrieving; with the setting
                ``attention_score_bias``, by their scores.
            max_new_tokens: length of the answers.
            stop: texts at which an answer ends; not part of it. White space before an answer does
                not end it. None ends it at the end token and ``max_new_tokens`` alone.
            chat: put each prompt into the chat template of the model's tokenizer, for a model that
                follows instructions.
            batch_size: prompts in one batch; prompts of like length share one.
            **generate_arguments: for Hugging Face ``generate`` (``do_sample``, ``num_beams`` ...);
                greedy by default. Those that work with retrieval inside the prompt's pass are
                listed in :mod:`imprag.model.generate_arguments`; others are refused.

        Returns:
            one answer for each prompt, in order.

        Raises:
            ImpRAGError: a prompt is empty or too long, k is larger than the index, there is no
                index, or an argument does not work with retrieval.
        """
        prompts = _asked(prompts, chat)
        arguments, stop = _checked(generate_arguments, max_new_tokens), _stops(stop)
        max_new_tokens = arguments.pop("max_new_tokens")
        if batch_size < 1:
            raise ImpRAGError(f"batch_size must be at least 1, not {batch_size}")
        if passages is not None and len(passages) != len(prompts):
            raise ImpRAGError(f"{len(prompts)} prompts, but passages for {len(passages)}")
        answers: dict[int, Answer] = {}
        for batch in _packed(prompts, batch_size):
            given = None if passages is None else [passages[n] for n in batch]
            run = _Run(self, [prompts[n] for n in batch], k, given, max_new_tokens)
            made = run.answers(run.generate(stop, arguments), stop)
            answers.update(zip(batch, made, strict=True))
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
        **generate_arguments: Any,
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; arguments as for :meth:`generate`.

        Generation runs in a thread of its own. It ends with the next token when the iterator is
        closed, also by leaving a loop over it, or when the answer has ended.
        """
        if not isinstance(prompt, str):
            raise ImpRAGError("stream takes one prompt as a text")
        arguments, stop = _checked(generate_arguments, max_new_tokens), _stops(stop)
        max_new_tokens = arguments.pop("max_new_tokens")
        if arguments.setdefault("num_beams", 1) != 1:
            raise ImpRAGError("num_beams: a stream follows one answer as it grows; use generate")
        given = None if passages is None else [passages]
        run = _Run(self, _asked([prompt], chat), k, given, max_new_tokens)
        return self._stream(run, stop, arguments)

    def _stream(self, run: "_Run", stop: Sequence[str], arguments: dict[str, Any]) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                run.generate(stop, {**arguments, "streamer": streamer}, left)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from _until(streamer, stop)
        finally:
            left.set()
            thread.join()
        if failure:
            raise failure[0]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write settings and weights, or the adapter, into a new folder."""
        save_pretrained(self.model, self.tokenizer, Path(folder))

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Returns:
            the address of the commit.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=folder)
        return str(commit.commit_url)

    def passages_to_read(self, k: int | None = None) -> int:
        """How many passages a prompt retrieves; see :meth:`ImpRAGConfig.passages_to_read`."""
        return 0 if k == 0 else self.config.passages_to_read(k, len(self.index.index))

    def _prompt_batch(self, prompts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
        limit = self.model.positions_limit - room
        return prompt_batch(self.tokenizer, prompts, max(limit, 0), self.model.device)


class _Run:
    """One batch on its way: prompt, search, passages, new tokens; takes the times."""

    def __init__(
        self,
        rag: ImpRAG,
        prompts: Sequence[str],
        k: int | None,
        passages: Sequence[Sequence[RetrievedPassage]] | None,
        max_new_tokens: int,
    ) -> None:
        self.rag = rag
        self.prompts = prompts
        given = [] if passages is None else [found for row in passages for found in row]
        if not all(isinstance(found, RetrievedPassage) for found in given):
            raise ImpRAGError(
                "passages must be RetrievedPassage(passage, score), as retrieve returns them"
            )
        # Known before the prompt runs, and before its room is counted.
        self.k = rag.passages_to_read(k) if passages is None else 0
        self.max_new_tokens = max_new_tokens
        self.found = [[] for _ in prompts] if passages is None else [list(p) for p in passages]
        self.timings = dict.fromkeys(("query", "search", "encode", "generate", "total"), 0.0)
        self.retrieves = self.k > 0
        counts = [self.k if self.retrieves else len(row) for row in self.found]
        shifts = [rag.config.position_shift(count) for count in counts]
        self.input_ids, self.mask = rag._prompt_batch(prompts, max(shifts) + max_new_tokens)
        self.shift = torch.tensor(shifts, device=rag.model.device)

    @torch.inference_mode()
    def generate(
        self,
        stop: Sequence[str],
        arguments: dict[str, Any],
        left: threading.Event | None = None,
    ) -> Tensor:
        """New tokens, (prompts, length).

        Args:
            stop: texts at which an answer ends.
            arguments: for ``generate``, checked.
            left: ends generation with the next token when it is set.
        """
        self._start = self._last = time.perf_counter()
        retrieve = self._retrieve if self.retrieves else fixed(self._encode())
        arguments = dict(arguments)
        ends: list[Any] = [*(arguments.pop("stopping_criteria", None) or ())]
        if stop:
            ends.append(_StopAt(stop, self.rag.tokenizer, self.input_ids.shape[1]))
        if left is not None:
            ends.append(_StopWhen(left))
        output: Tensor = self.rag.model.generate(
            self.input_ids,
            self.mask,
            retrieve,
            position_shift=self.shift,
            stopping_criteria=StoppingCriteriaList(ends),
            **{"do_sample": False, "max_new_tokens": self.max_new_tokens, **arguments},
        )
        self._lap("generate")
        self.timings["total"] = self._last - self._start
        return output[:, self.input_ids.shape[1] :]

    def answers(self, tokens: Tensor, stop: Sequence[str]) -> list[Answer]:
        """Texts of the new tokens, cut at the stop strings."""
        texts = self.rag.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Answer(prompt, "".join(_until([text], stop)).strip(), found, self.timings)
            for prompt, text, found in zip(self.prompts, texts, self.found, strict=True)
        ]

    def _retrieve(self, query_embeddings: Tensor) -> PassageKV:
        queries = query_embeddings.cpu().numpy()
        self._lap("query")
        self.found = self.rag.index.search(queries, self.k)
        self._lap("search")
        return self._encode()

    def _encode(self) -> PassageKV:
        passages = [[found.passage for found in row] for row in self.found]
        kv = self.rag.kv_cache.kv(passages)
        if weight := self.rag.config.attention_score_bias:
            scores = [[found.score for found in row] for row in self.found]
            kv = kv.with_score_bias(scores, weight)
        self._lap("encode")
        return kv

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timings[name] = now - self._last
        self._last = now


class _StopAt:
    """A stopping criterion: ends a row when a stop string stands in its new text."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self.stop = stop
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :])
        ended = [any(stop in text.lstrip() for stop in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class _StopWhen:
    """A stopping criterion: ends all rows when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _asked(prompts: Any, chat: bool) -> Sequence[str]:
    """Prompts that can be answered, marked as messages for the chat template if need be."""
    if isinstance(prompts, Iterable) and not isinstance(prompts, str):
        prompts = list(prompts)  # an iterator can be gone through once
    check_prompts(prompts)
    return [ChatPrompt(prompt) for prompt in prompts] if chat else list(prompts)


def _checked(arguments: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Arguments for ``generate`` that give one answer to each prompt."""
    arguments = {**arguments, "max_new_tokens": max_new_tokens}
    arguments = check_arguments(arguments, {*CHOICES, *CALLBACKS})
    criteria = arguments.get("stopping_criteria")
    if criteria is not None and not isinstance(criteria, list | tuple):
        arguments["stopping_criteria"] = [criteria]
    config = arguments.pop("generation_config", None)
    if config is not None:
        chosen = {name: value for name, value in config.to_diff_dict().items() if name in CHOICES}
        # Only the length has a default of its own here, which the configuration replaces.
        arguments = {
            **chosen,
            **arguments,
            **{n: x for n, x in chosen.items() if n == "max_new_tokens"},
        }
    return arguments


def _stops(stop: Sequence[str] | str | None) -> Sequence[str]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise ImpRAGError("stop must be texts that are not empty")
    return stops


def _packed(prompts: Sequence[str], size: int = 8) -> Iterator[list[int]]:
    """Numbers of the prompts in batches of like length, the longest first: little is padded."""
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    for start in range(0, len(prompts), size):
        yield order[start : start + size]


def _until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass text on from its first letter until a stop string begins, without any part of it."""
    held, begun = "", False
    for piece in pieces:
        held = held + piece if begun else (held + piece).lstrip()
        begun = begun or bool(held)
        ends = [held.index(text) for text in stop if text in held]
        if ends:
            yield held[: min(ends)]
            return
        # The end of what is held may be the beginning of a stop string.
        keep = max(
            (n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0
        )
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
