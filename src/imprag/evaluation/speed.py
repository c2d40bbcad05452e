"""Speed and memory of answers, compared with in-context RAG by the same model.

*In-context RAG* retrieves with all-MiniLM-L6-v2 and puts the passages before the prompt. All arms
run in one process, in turn, on the same prompts and on passages of the same number of tokens; each
makes the same number of new tokens with Hugging Face ``generate``, in the same dtype.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation.speed_arms import (
    CODED,
    COMPILED,
    FULL,
    LIVE,
    NEW_TOKENS,
    NONE,
    RAG,
    Arm,
    InContextArm,
    ReadingArm,
    stored,
)
from imprag.evaluation.speed_measure import failure_kept, measure
from imprag.index.folder import IndexFolder
from imprag.io.building import versions
from imprag.io.files import write_json
from imprag.kv_cache import DiskStore, PassageKVCache, build_kv_cache
from imprag.model.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.pipeline import ImpRAG
from imprag.retrieval.dense import DenseRetriever, TextEncoder

ALL = "all arms"
RUNS = 30
QUICK_RUNS = 6


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
        failed: dict[str, str] = {}
        with failure_kept(ALL, failed):
            cut = model.with_settings(max_passage_tokens=tokens, passage_encoding="independent")
            place = folder / f"{tokens}-tokens"
            texts = _long_passages(corpus, tokenizer, place / "corpus", tokens, passages)
            setting = _Setting(cut, tokenizer, texts, place, codecs, compiled)
        for number in k:
            at = {"k": number, "passage_tokens": tokens}
            lacking = dict(failed)
            if ALL not in failed:
                arms = setting.arms(number, lacking)
                for name, one in measure(arms, runs, f"{number} x {tokens}", lacking).items():
                    rows.append({"arm": name, **at, **one})
                    rows[-1]["memory_bytes"] = setting.memory_bytes.get(name)
            failures += ({"arm": name, **at, "error": error} for name, error in lacking.items())
            write_json(folder / "rows.json", rows)  # an interruption keeps what is measured
    if not rows:
        raise ImpRAGError(f"no arm could be measured: {failures[0]['error']}")
    return rows, failures


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
            with failure_kept(stored(codec), self.failed):
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
            with failure_kept(name, failed):
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
