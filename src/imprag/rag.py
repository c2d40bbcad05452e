"""ImpRAG put together: a model, an index and its corpus; ask, retrieve, generate, stream."""

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
from transformers import TextIteratorStreamer

from imprag.corpus import Corpus, load_corpus
from imprag.errors import ImpRAGError
from imprag.files import cache_dir
from imprag.index.folder import Encoder, IndexFolder, RetrievedPassage
from imprag.index.stored_embeddings import OtherEmbeddingsError, StoredEmbeddings
from imprag.memory.manifest import states_fingerprint
from imprag.memory.passage_memory import PassageMemory
from imprag.memory.stores import DiskStore, Store
from imprag.model.config import ImpRAGConfig
from imprag.model.encoder import PassageEncoder
from imprag.model.layer_groups import LayerGroups
from imprag.model.pretrained import (
    DEFAULT,
    DEFAULT_FOLDER,
    EMBEDDINGS,
    load_pretrained,
    save_pretrained,
)
from imprag.model.states import Prefix
from imprag.model.text import prompt_batch
from imprag.text_checks import check_prompts


@dataclass(frozen=True)
class Answer:
    """What ImpRAG says to one prompt.

    Attributes:
        prompt: as given.
        answer: the new text, without the prompt and the stop string.
        passages: what was retrieved and read, best first.
        timings: seconds of the batch that the prompt was in: ``query`` (prompt through layers
            0..b-1), ``search``, ``encode`` (passages through layers 0..t, or out of the memory),
            ``generate`` (the rest of the prompt's pass and all new tokens), ``total``.
    """

    prompt: str
    answer: str
    passages: list[RetrievedPassage]
    timings: dict[str, float]


class ImpRAG:
    """A model that retrieves, reads and answers in one pass of the prompt.

    Args:
        groups: the model.
        tokenizer: its tokenizer.
        index: folder of passages and their embeddings; without one, prompts can only be answered
            with passages that the caller brings, or none.

    Attributes:
        memory: gives what is read; without :meth:`use_memory`, passages are encoded when they are.

    Example:
        >>> rag = ImpRAG.from_pretrained("default")  # doctest: +SKIP
        >>> rag.ask("Q: what is the capital of Chad? A:").answer  # doctest: +SKIP
    """

    def __init__(
        self, groups: LayerGroups, tokenizer: Any, index: IndexFolder | None = None
    ) -> None:
        self.groups = groups
        self.tokenizer = tokenizer
        self.encoder = PassageEncoder(groups, tokenizer)
        self._index = index
        self._default_corpus: str | None = None
        if index is not None:
            index.index.manifest.check(model_fingerprint=self.encoder.fingerprint())
        self.memory = PassageMemory(groups, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT,
        index: Path | str | None = None,
        memory: Path | str | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        **settings: Any,
    ) -> "ImpRAG":
        """Load a model and, if given, an index made by ``imprag index`` with the same model.

        Args:
            name_or_path: ``"default"``, or what :func:`imprag.model.load_pretrained` takes.
            index: an index folder. The default model without one uses the built-in corpus
                ``default``, whose embeddings come with it.
            memory: a folder made by ``imprag memory build`` with the same model and index.
            dtype, device: as for :func:`imprag.model.load_base_model`.
            **settings: in place of those stored in the model's ``ImpRAGConfig``.

        Raises:
            ImpRAGError: no such model, index or memory, or they do not belong together.
        """
        is_default = str(name_or_path) == DEFAULT
        groups, tokenizer = load_pretrained(name_or_path, dtype, device, **settings)
        rag = cls(groups, tokenizer, None if index is None else IndexFolder.open(Path(index)))
        if is_default:
            rag._default_corpus = DEFAULT
        if memory is not None:
            rag.use_memory(memory)
        return rag

    @property
    def config(self) -> ImpRAGConfig:
        """The model's settings."""
        return self.groups.config

    @property
    def corpus(self) -> Corpus:
        """The passages that prompts retrieve from.

        Raises:
            ImpRAGError: there are none.
        """
        if self._index is not None:
            return self._index.corpus
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
            self._index = IndexFolder.build(corpus, self._shipped(corpus, fingerprint), folder)
        return self._index

    def _shipped(self, corpus: Corpus, fingerprint: str) -> Encoder:
        """The default model's stored embeddings, or itself where settings were changed."""
        try:
            return StoredEmbeddings(DEFAULT_FOLDER / EMBEDDINGS, corpus, fingerprint)
        except OtherEmbeddingsError:
            return self.encoder

    def use_memory(self, memory: Store | Path | str) -> None:
        """Read passages from stored states.

        Args:
            memory: a folder that ``imprag memory build`` made with the same model and corpus, or
                a store such as :class:`~imprag.memory.RamStore`.

        Raises:
            ImpRAGError: there is no such memory, it belongs to another model or corpus, or the
                model's passages are not encoded independently.
        """
        if isinstance(memory, Path | str):
            memory = DiskStore(memory, self.corpus)
            memory.manifest.check(model_fingerprint=states_fingerprint(self.groups))
        self.memory = PassageMemory(self.groups, self.tokenizer, memory)

    def retrieve(
        self, prompts: Sequence[str], k: int | None = None
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, by its hidden state; layers 0..b only.

        Args:
            prompts: as they would be answered; none empty.
            k: passages for each; the configured number if not given.
        """
        check_prompts(prompts)
        found: dict[int, list[RetrievedPassage]] = {}
        for batch in _packed(prompts):
            ids, mask = self._prompt_batch([prompts[n] for n in batch], room=0)
            with torch.inference_mode():
                queries = self.groups.query_embeddings(ids, mask)
            rows = self.index.search(queries.cpu().numpy(), self._k(k))
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
        given = None if passages is None else [passages]
        return self.generate([prompt], k, passages=given, **generate_arguments)[0]

    def generate(
        self,
        prompts: Sequence[str],
        k: int | None = None,
        *,
        passages: Sequence[Sequence[RetrievedPassage]] | None = None,
        max_new_tokens: int = 32,
        stop: Sequence[str] = ("\n",),
        batch_size: int = 8,
        **generate_arguments: Any,
    ) -> list[Answer]:
        """Retrieve, read and answer, in one pass of each prompt through the model.

        Args:
            prompts: texts; none empty.
            k: passages to retrieve for each; 0 answers without any; the configured number if
                not given.
            passages: read these, for each prompt, instead of retrieving; with the setting
                ``reading_score_weight``, by their scores.
            max_new_tokens: length of the answers.
            stop: texts at which an answer ends; not part of it. White space before an answer does
                not end it.
            batch_size: prompts in one batch; prompts of like length share one.
            **generate_arguments: for Hugging Face ``generate`` (``do_sample``, ``num_beams`` ...);
                greedy by default.

        Returns:
            one answer for each prompt, in order.

        Raises:
            ImpRAGError: a prompt is empty or too long, k is larger than the index, or there is
                no index.
        """
        check_prompts(prompts)
        if generate_arguments.get("num_return_sequences", 1) != 1:
            raise ImpRAGError("num_return_sequences: there is one answer for each prompt")
        if passages is not None and len(passages) != len(prompts):
            raise ImpRAGError(f"{len(prompts)} prompts, but passages for {len(passages)}")
        answers: dict[int, Answer] = {}
        for batch in _packed(prompts, batch_size):
            given = None if passages is None else [passages[n] for n in batch]
            run = _Run(self, [prompts[n] for n in batch], k, given, max_new_tokens)
            made = run.answers(run.generate(stop, generate_arguments), stop)
            answers.update(zip(batch, made, strict=True))
        return [answers[n] for n in range(len(prompts))]

    def stream(
        self,
        prompt: str,
        k: int | None = None,
        *,
        passages: Sequence[RetrievedPassage] | None = None,
        max_new_tokens: int = 32,
        stop: Sequence[str] = ("\n",),
        **generate_arguments: Any,
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; arguments as for :meth:`generate`."""
        given = None if passages is None else [passages]
        run = _Run(self, [prompt], k, given, max_new_tokens)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                run.generate(stop, {"streamer": streamer, **generate_arguments})
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield from _until(streamer, stop)
        thread.join()
        if failure:
            raise failure[0]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write settings and weights, or the adapter, into a new folder."""
        save_pretrained(self.groups, self.tokenizer, Path(folder))

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

    def _k(self, k: int | None) -> int:
        if k is not None and k < 0:
            raise ImpRAGError(f"k must not be negative, but is {k}")
        return self.config.k if k is None else k

    def _prompt_batch(self, prompts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
        limit = self.groups.lm.config.get_text_config().max_position_embeddings - room
        return prompt_batch(self.tokenizer, prompts, max(limit, 0), self.groups.device)


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
        self.k = rag._k(k)
        self.max_new_tokens = max_new_tokens
        self.found = [[] for _ in prompts] if passages is None else [list(p) for p in passages]
        self.timings = dict.fromkeys(("query", "search", "encode", "generate", "total"), 0.0)
        self.retrieves = passages is None and self.k > 0
        if self.retrieves and self.k > len(rag.index.index):
            # Known before the prompt runs, and before its room is counted.
            raise ImpRAGError(f"k is {self.k}, but the index has {len(rag.index.index)} passages")
        counts = [self.k if self.retrieves else len(row) for row in self.found]
        shifts = [rag.config.position_shift(count) for count in counts]
        self.input_ids, self.mask = rag._prompt_batch(prompts, max(shifts) + max_new_tokens)
        self.shift = torch.tensor(shifts, device=rag.groups.device)

    @torch.inference_mode()
    def generate(self, stop: Sequence[str], arguments: dict[str, Any]) -> Tensor:
        """New tokens, (prompts, length)."""
        self._start = self._last = time.perf_counter()
        passages = self._retrieve if self.retrieves else self._encode()
        ends = [_StopAt(stop, self.rag.tokenizer, self.input_ids.shape[1])] if stop else []
        output: Tensor = self.rag.groups.generate(
            self.input_ids,
            self.mask,
            passages,
            position_shift=self.shift,
            stopping_criteria=ends,
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

    def _retrieve(self, query_embeddings: Tensor) -> Prefix:
        queries = query_embeddings.cpu().numpy()
        self._lap("query")
        self.found = self.rag.index.search(queries, self.k)
        self._lap("search")
        return self._encode()

    def _encode(self) -> Prefix:
        passages = [[found.passage for found in row] for row in self.found]
        prefix = self.rag.memory.prefix(passages)
        if weight := self.rag.config.reading_score_weight:
            prefix = prefix.weighted([[found.score for found in row] for row in self.found], weight)
        self._lap("encode")
        return prefix

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
