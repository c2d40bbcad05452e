"""What ``imprag index`` does, once its options are known to fit together."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from imprag.cli.options import HERE, ModelOptions, RayOptions
from imprag.cli.planning import Plan, passages_per_second
from imprag.corpus import Corpus, load_corpus
from imprag.corpus.readers import SkippedLines
from imprag.distributed.ray_data import LoadedModel
from imprag.errors import ImpRAGError
from imprag.index.backends import INDEX_BACKENDS
from imprag.index.build import MakeShards, predict_index
from imprag.index.fitting import Cutter, CutText, fit_documents
from imprag.index.folder import IndexFolder
from imprag.index.update import KnownCuts, Updated, update_index, upsert_and_remove
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

    def plan(self, corpora: Sequence[str], kind: str | None) -> Plan:
        passages = self._load(corpora)
        encoder = self._encoder()
        passages, _ = self._fit(passages, encoder)
        rows: list[dict[str, str | int]] = []
        for name in [kind] if kind else INDEX_BACKENDS.names():
            try:
                found = predict_index(passages, dimension=encoder.dimension, kind=name)
            except ImpRAGError as error:
                if kind:
                    raise
                print(f"note: not {name}: {error}", file=sys.stderr)
                continue
            rows.append(asdict(found))
        rate = passages_per_second(encoder, passages, range(len(passages)))
        return Plan(len(passages), rate, "embedded", "kinds", rows)

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
