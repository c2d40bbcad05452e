"""Speed and memory of answers, compared with in-context RAG by the same model.

*In-context RAG* retrieves with all-MiniLM-L6-v2 and puts the passages before the prompt. All arms
run in one process, in turn, on the same prompts and on passages of the same number of tokens; each
makes the same number of new tokens with Hugging Face ``generate``, in the same dtype.
"""

import ctypes
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.building import versions
from imprag.io.files import write_json
from imprag.kv_cache import DiskStore, PassageKVCache, build_kv_cache
from imprag.model.generate import compile_config
from imprag.model.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.text import passage_tokens, prompt_batch
from imprag.pipeline import ImpRAG
from imprag.retrieval.dense import DenseRetriever, TextEncoder

PROMPTS = tuple(
    f"Q: {question} A:"
    for question in (
        "what is the capital of Chad?",
        "what is the highest point of Peru?",
        "which currency is used in Norway?",
        "who is the head of government of Samoa?",
        "what is the internet country code of Laos?",
        "how many people live in Belgium?",
        "which languages are spoken in Cameroon?",
        "what are the natural resources of Mongolia?",
        "what is the national anthem of Fiji called?",
        "when did Ghana become independent?",
    )
)
NEW_TOKENS = 16
WARM_UP = 2
RAG = "in-context RAG"
NONE = "no retrieval"
LIVE = "ImpRAG, live"
FULL = "ImpRAG, full"
CODED = "ImpRAG, stored pq, kept coded"
COMPILED = ", compiled"
"""Behind the name of an arm whose new tokens after the first are made by a compiled pass."""


def stored(codec: str) -> str:
    """The name of the arm that reads a KV cache of this codec."""
    return f"ImpRAG, stored {codec}"


@dataclass(frozen=True)
class Measurement:
    """One answer.

    Attributes:
        first_token: seconds from the prompt's text to the first new token.
        tokens_per_second: of the new tokens after the first.
        total: seconds to the last.
    """

    first_token: float
    tokens_per_second: float
    total: float


class Arm(Protocol):
    """One way to answer."""

    def __call__(self, prompt: str, stamps: "Stamps") -> None:
        """Answer with ``NEW_TOKENS`` new tokens; ``stamps`` is told of each."""

    def kv_bytes(self, prompt: str) -> int:
        """Keys and values that the answer's last token attends to, in bytes."""


class Stamps(LogitsProcessor):  # type: ignore[misc]
    """Notes when each new token's scores are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores as they are."""
        self.times.append(time.perf_counter())
        return scores


class ReadingArm:
    """ImpRAG: live or stored, or without passages.

    Args:
        rag: with its KV cache.
        k: passages.
    """

    def __init__(self, rag: ImpRAG, k: int) -> None:
        self.rag = rag
        self.k = k

    def __call__(self, prompt: str, stamps: Stamps) -> None:
        """Answer."""
        self.rag.ask(
            prompt,
            self.k,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            stop=(),
            logits_processor=LogitsProcessorList([stamps]),
        )

    def kv_bytes(self, prompt: str) -> int:
        """The passages' at layers b..t, and the prompt's and answer's own at all layers."""
        ids, _ = prompt_batch(self.rag.tokenizer, [prompt], 10**6, torch.device("cpu"))
        own = (ids.shape[1] + NEW_TOKENS) * _token_bytes(self.rag.model)
        if not self.k:
            return own
        found = [[one.passage for one in row] for row in self.rag.retrieve([prompt], self.k)]
        return own + self.rag.kv_cache.kv(found).nbytes


class InContextArm:
    """In-context RAG.

    Args:
        model: whose language model answers, as it is.
        tokenizer: its tokenizer.
        teacher: retrieves.
        k: passages.
        compiled: decode with transformers' static cache and compiled pass.
    """

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        teacher: DenseRetriever,
        k: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.k = k
        self.arguments = {}
        if compiled:
            self.arguments = {"cache_implementation": "static", "compile_config": compile_config()}

    def __call__(self, prompt: str, stamps: Stamps) -> None:
        """Answer."""
        ids = self._input(prompt)
        self.model.lm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            do_sample=False,
            logits_processor=LogitsProcessorList([stamps]),
            **self.arguments,
        )

    def kv_bytes(self, prompt: str) -> int:
        """Those of all tokens at all layers."""
        return (self._input(prompt).shape[1] + NEW_TOKENS) * _token_bytes(self.model)

    def _input(self, prompt: str) -> Tensor:
        found = [one.passage for one in self.teacher.retrieve([prompt], self.k)[0]]
        device = self.model.device
        own, _ = prompt_batch(self.tokenizer, [prompt], 10**6, device)
        passages = passage_tokens(self.tokenizer, self.model.config, found)
        context = torch.tensor([[token for row in passages for token in row]], device=device)
        return torch.cat([context, own], dim=1)


def benchmark(
    model: ImpRAGModel,
    tokenizer: Any,
    corpus: Corpus,
    folder: Path,
    *,
    k: Sequence[int],
    passage_tokens: Sequence[int],
    codecs: Sequence[str],
    runs: int,
    passages: int = 256,
    compiled: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure all arms for every number and length of passages.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        corpus: real text, of which passages are made.
        folder: for the indexes and KV caches that are measured; used again by the next call.
        k: numbers of passages.
        passage_tokens: their lengths.
        codecs: of the KV caches that are read.
        runs: of each arm, after ``WARM_UP`` others.
        passages: in the corpus that is searched.
        compiled: measure decoding by a compiled pass, too: in-context RAG's, and that of the first
            codec.

    Returns:
        for every length, number and arm the medians of :class:`Measurement`, ``kv_bytes`` held for
        the request, ``memory_bytes`` of a stored passage, and how often it was measured; and of
        every arm that failed, for which setting and why.

    Raises:
        ImpRAGError: all arms failed.
    """
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for tokens in passage_tokens:
        cut = model.with_settings(max_passage_tokens=tokens, passage_encoding="independent")
        place = folder / f"{tokens}-tokens"
        texts = _long_passages(corpus, tokenizer, place / "corpus", tokens, passages)
        setting = _Setting(cut, tokenizer, texts, place, codecs, compiled)
        for number in k:
            failed: dict[str, str] = {}
            arms = setting.arms(number, failed)
            measured = _measure(arms, runs, f"{number} x {tokens} tokens", failed)
            failures += (
                {"arm": name, "k": number, "passage_tokens": tokens, "error": error}
                for name, error in failed.items()
            )
            for name, one in measured.items():
                rows.append({"arm": name, "k": number, "passage_tokens": tokens, **one})
                rows[-1]["memory_bytes"] = setting.memory_bytes.get(name)
            write_json(folder / "rows.json", rows)  # the next setting may fail
    if not rows:
        raise ImpRAGError(f"no arm could be measured: {failures[0]['error']}")
    return rows, failures


def ratios(rows: Sequence[Mapping[str, Any]], codec: str = "bf16") -> dict[str, float]:
    """ImpRAG's figures as shares of in-context RAG's, for ten passages of 128 tokens.

    Times and bytes below 1, tokens per second above 1 are in ImpRAG's favour.
    """
    at = {row["arm"]: row for row in rows if (row["k"], row["passage_tokens"]) == (10, 128)}
    if RAG not in at:
        return {}

    def share(arm: str, what: str, base: str = RAG) -> float:
        if arm not in at or base not in at or not at[base][what]:
            return math.nan
        return float(at[arm][what] / at[base][what])

    reads = stored(codec)
    found = {
        "ttft_stored_vs_rag": share(reads, "first_token"),
        "ttft_live_vs_rag": share(LIVE, "first_token"),
        "decode_vs_rag": share(reads, "tokens_per_second"),
        "kv_bytes_vs_rag": share(reads, "kv_bytes"),
        "memory_vs_rag": share(reads, "memory"),
    }
    if reads + COMPILED in at:
        rate = "tokens_per_second"
        found["decode_compiled_vs_rag"] = share(reads + COMPILED, rate)
        found["decode_compiled_vs_rag_compiled"] = share(reads + COMPILED, rate, RAG + COMPILED)
    if CODED in at:
        found["kv_bytes_pq_vs_rag"] = share(CODED, "kv_bytes")
    return {name: value for name, value in found.items() if not math.isnan(value)}


def growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How the time to the first token grows with the passages' tokens: the log-log slope by arm."""
    slopes = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        points = [
            (math.log(row["k"] * row["passage_tokens"]), math.log(row["first_token"]))
            for row in rows
            if row["arm"] == name and row["k"]
        ]
        if len({x for x, _ in points}) > 1:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            slopes[name] = slope
    return slopes


def environment(model: ImpRAGModel) -> dict[str, Any]:
    """What the figures depend on besides the settings."""
    return {
        "model": model.config.base_model,
        "b": model.config.b,
        "t": model.config.t,
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "new_tokens": NEW_TOKENS,
        **versions(torch=torch.__version__, transformers=transformers.__version__),
    }


class _Setting:
    """Corpus, indexes and KV caches for one length of passages."""

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        corpus: Corpus,
        folder: Path,
        codecs: Sequence[str],
        compiled: bool,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.compiled = compiled
        self.index = IndexFolder.build(
            corpus, PassageEncoder(model, tokenizer), folder / "index", progress=False
        )
        self.teacher = DenseRetriever(corpus, TextEncoder(device=str(model.device)))
        self.stores: dict[str, DiskStore] = {}
        self.failed: dict[str, str] = {}
        for codec in codecs:
            with _failure_kept(stored(codec), self.failed):
                self.stores[codec] = build_kv_cache(
                    corpus, model, tokenizer, folder / codec, codec=codec, progress=False
                )
        self.memory_bytes = {
            stored(codec): store.manifest.summary()["bytes_per_passage"]
            for codec, store in self.stores.items()
        }

    def arms(self, k: int, failed: dict[str, str]) -> dict[str, Arm]:
        """All arms that read k passages, the one without them first.

        Args:
            k: passages.
            failed: is given the arms that cannot be made, and why.
        """
        failed |= self.failed
        arms: dict[str, Arm] = {}
        for name, make in self._makers(k).items():
            with _failure_kept(name, failed):
                arms[name] = make()
        return arms

    def _makers(self, k: int) -> dict[str, Callable[[], Arm]]:
        model, tokenizer, teacher = self.model, self.tokenizer, self.teacher
        rag = ImpRAG(model, tokenizer, self.index)
        makers: dict[str, Callable[[], Arm]] = {
            NONE: lambda: ReadingArm(rag, 0),
            RAG: lambda: InContextArm(model, tokenizer, teacher, k),
            LIVE: lambda: ReadingArm(rag, k),
            FULL: lambda: self._full_arm(k),
        }
        for codec, store in self.stores.items():
            makers[stored(codec)] = partial(self._stored_arm, model, store, k)
        if self.compiled:
            makers[RAG + COMPILED] = lambda: InContextArm(
                model, tokenizer, teacher, k, compiled=True
            )
            for codec, store in list(self.stores.items())[:1]:
                makers[stored(codec) + COMPILED] = partial(self._compiled_arm, store, k)
        if "pq" in self.stores:
            makers[CODED] = lambda: self._coded_arm(k)
        return makers

    def _full_arm(self, k: int) -> ReadingArm:
        # Passages in one sequence cannot be weighed one by one; it takes the same time.
        full = self.model.with_settings(passage_encoding="full", attention_score_bias=0.0)
        return ReadingArm(ImpRAG(full, self.tokenizer, self.index), k)

    def _compiled_arm(self, store: DiskStore, k: int) -> ReadingArm:
        model = self.model.with_settings()
        model.compile_decoding()
        return self._stored_arm(model, store, k)

    def _coded_arm(self, k: int) -> ReadingArm:
        reading = ImpRAG(self.model, self.tokenizer, self.index)
        reading.kv_cache = PassageKVCache(
            self.model, self.tokenizer, self.stores["pq"], keep_coded=True
        )
        return ReadingArm(reading, k)

    def _stored_arm(self, model: ImpRAGModel, store: DiskStore, k: int) -> ReadingArm:
        reading = ImpRAG(model, self.tokenizer, self.index)
        reading.use_kv_cache(store)
        return ReadingArm(reading, k)


def _long_passages(corpus: Corpus, tokenizer: Any, folder: Path, tokens: int, count: int) -> Corpus:
    """Texts of the corpus of which each has so many tokens, as many passages joined as it takes."""
    folder = folder.with_name(f"{folder.name}-{count}")
    if folder.is_dir():
        return Corpus.open(folder)
    made: list[Passage] = []
    first: Passage | None = None
    text = ""
    for passage in corpus:
        first = first or passage
        text = f"{text} {passage.text}".strip()
        if len(tokenizer(text)["input_ids"]) > tokens:
            made.append(Passage(first.id, first.title, text))
            first, text = None, ""
        if len(made) == count:
            return Corpus.build(made, folder, source=f"texts of at least {tokens} tokens")
    raise ImpRAGError(
        f"the corpus has only {len(made)} texts of {tokens} tokens; {count} are needed"
    )


def _measure(
    arms: Mapping[str, Arm], runs: int, what: str, failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Medians of every arm's runs.

    Args:
        arms: by their names.
        runs: of each, after those for warming up.
        what: is measured, for the progress bar.
        failed: is given the arms that fail, and why.
    """
    times: dict[str, list[Measurement]] = {name: [] for name in arms}
    with tqdm(desc=what, total=runs + WARM_UP, unit=" rounds", disable=None) as bar:
        for run in range(runs + WARM_UP):
            for name, arm in arms.items():
                if name in failed:
                    continue
                with _failure_kept(name, failed):
                    one = _once(arm, PROMPTS[run % len(PROMPTS)])
                    if run >= WARM_UP:
                        times[name].append(one)
            bar.update()
    fields = [field.name for field in dataclasses.fields(Measurement)]
    measured = {}
    for name, found in times.items():
        if name in failed:
            continue
        with _failure_kept(name, failed):
            measured[name] = {
                **{field: statistics.median(getattr(x, field) for x in found) for field in fields},
                "memory": _peak_growth(arms[name], PROMPTS[0]),
                "kv_bytes": arms[name].kv_bytes(PROMPTS[0]),
                "runs": runs,
            }
    return measured


@contextmanager
def _failure_kept(arm: str, failed: dict[str, str]) -> Iterator[None]:
    """Note that an arm fails, out of memory or refused, so that the others are still measured."""
    try:
        yield
    except (ImpRAGError, RuntimeError, OSError, MemoryError) as error:
        failed[arm] = " ".join(str(error).split()) or type(error).__name__


def _once(arm: Arm, prompt: str) -> Measurement:
    stamps = Stamps()
    start = time.perf_counter()
    arm(prompt, stamps)
    end = time.perf_counter()
    first, *_, last = stamps.times
    return Measurement(
        first_token=first - start,
        tokens_per_second=(len(stamps.times) - 1) / (last - first),
        total=end - start,
    )


def _peak_growth(arm: Arm, prompt: str) -> int:
    """Bytes by which the resident set grows at most in one answer; 0 where nobody tells.

    What was freed before is given back to the system first, or it would be used again unseen. That
    makes an answer slower, so it is one of its own.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # begins to note the peak anew
    except (OSError, AttributeError):
        return 0
    before = _status("VmRSS")
    arm(prompt, Stamps())
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of an entry of the process's status; 0 where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _token_bytes(model: ImpRAGModel) -> int:
    """Keys and values of one token at all layers."""
    size: int = model.lm.dtype.itemsize
    return 2 * len(model.lm.base_model.layers) * model.embedding_dim * size
