"""What ``imprag index`` does, once its options are known to fit together."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imprag.cli.options import HERE, ModelOptions, RayOptions
from imprag.corpus import Corpus, load_corpus
from imprag.corpus.readers import SkippedLines
from imprag.distributed.ray_data import LoadedModel
from imprag.errors import ImpRAGError
from imprag.evaluation.tables import markdown_table
from imprag.index.backends import INDEX_BACKENDS
from imprag.index.build import MakeShards, predict_index
from imprag.index.fitting import Cutter, CutText, fit_documents
from imprag.index.folder import IndexFolder
from imprag.index.update import KnownCuts, Updated, update_index, upsert_and_remove
from imprag.io.building import readable_size
from imprag.model.passage_encoder import PassageEncoder


@dataclass(frozen=True)
class Making:
    """How an index folder is made or changed; each method says on standard error what it did."""

    out: Path
    model: ModelOptions
    skip_bad_lines: bool
    compile: bool
    ray: RayOptions = HERE

    def build(self, corpora: Sequence[str], kind: str, uri: str, overwrite: bool) -> None:
        passages = self._load(corpora)
        encoder = self._encoder()
        passages, cut = self._fit(passages, encoder)
        folder = IndexFolder.build(
            passages,
            encoder,
            self.out,
            kind=kind,
            location=uri,
            overwrite=overwrite,
            cut=cut,
            make_shards=self._elsewhere(encoder),
        )
        self._say(f"{len(folder.corpus):,} passages, {kind} index")

    def plan(self, corpora: Sequence[str], kind: str | None) -> None:
        passages = self._load(corpora)
        encoder = self._encoder()
        passages, _ = self._fit(passages, encoder)
        rate = passages_per_second(encoder, passages)
        hours = len(passages) / rate / 3600
        print(
            f"{len(passages):,} passages, {rate:.3g} of them embedded in a second on this machine: "
            f"{duration(hours)}\n"
        )
        rows = []
        for name in [kind] if kind else INDEX_BACKENDS.names():
            try:
                found = predict_index(passages, dimension=encoder.dimension, kind=name)
            except ImpRAGError as error:
                if kind:
                    raise
                print(f"note: not {name}: {error}", file=sys.stderr)
                continue
            sizes = found.disk, found.building, found.memory, found.server
            rows.append([name, *map(readable_size, sizes)])
        head = ["kind", "disk", "disk while building", "memory while building", "on the server"]
        print(markdown_table(head, rows), end="")

    def update(self, corpora: Sequence[str], kind: str | None, uri: str) -> None:
        folder = IndexFolder.open(self.out)  # before the model is loaded: says if there is none
        passages = self._load(corpora)
        encoder = self._encoder()
        folder.check_model(encoder.fingerprint(), self.model.model)
        passages, cut = self._fit(passages, KnownCuts(encoder, folder))
        updated = update_index(
            self.out,
            passages,
            encoder,
            model=self.model.model,
            kind=kind,
            location=uri,
            cut=cut,
            make_shards=self._elsewhere(encoder, folder.index.manifest.dtype),
        )
        self._say_updated(updated)

    def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        folder = IndexFolder.open(self.out)
        passages = self._load(add) if add else None
        encoder = self._encoder()
        added = () if passages is None else self._fit(passages, encoder)[0]
        updated = upsert_and_remove(
            self.out,
            encoder,
            added,
            remove,
            model=self.model.model,
            make_shards=self._elsewhere(encoder, folder.index.manifest.dtype),
        )
        self._say_updated(updated)

    def _elsewhere(self, encoder: PassageEncoder, dtype: str = "float16") -> MakeShards | None:
        """What makes shards on Ray; None if this process does."""
        cluster = self.ray.cluster()
        if cluster is None:
            return None
        own = self.model
        worker = LoadedModel(own.model, own.dtype, own.device, self.compile)
        return cluster.index_shards(worker, encoder, dtype)

    def _load(self, corpora: Sequence[str]) -> Corpus:
        passages = load_corpus(corpora, skip_bad_lines=self.skip_bad_lines)
        for line in SkippedLines(**passages.manifest["skipped"]).summary():
            print(line, file=sys.stderr)
        return passages

    def _encoder(self) -> PassageEncoder:
        rag = self.model.load()
        if self.compile:
            rag.model.compile_bottom()
        return rag.encoder

    def _fit(self, passages: Corpus, encoder: Cutter) -> tuple[Corpus, CutText]:
        fitted, cut = fit_documents(passages, encoder)
        if cut.passages:
            print(cut, file=sys.stderr)
        return fitted, cut

    def _say_updated(self, updated: Updated) -> None:
        self._say(f"{len(updated.folder.corpus):,} passages; {updated}")

    def _say(self, what: str) -> None:
        print(f"{self.out}: {what}", file=sys.stderr)


def passages_per_second(encoder: PassageEncoder, passages: Corpus, count: int = 96) -> float:
    """How fast an encoder is, measured on some passages from all over a corpus."""
    step = max(1, len(passages) // count)
    sample = passages.passages(range(0, len(passages), step)[:count])
    encoder(sample[:8])  # warms up
    began = time.perf_counter()
    encoder(sample)
    return len(sample) / (time.perf_counter() - began)


def duration(hours: float) -> str:
    """A time in words."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} seconds"
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"
