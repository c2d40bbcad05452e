"""What ``imprag index`` does, once its options are known to fit together."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imprag.cli.options import ModelOptions
from imprag.corpus import Corpus, load_corpus
from imprag.corpus.readers import SkippedLines
from imprag.index.fitting import CutText, fit_documents
from imprag.index.folder import IndexFolder
from imprag.index.update import Updated, update_index, upsert_and_remove
from imprag.model.passage_encoder import PassageEncoder


@dataclass(frozen=True)
class Making:
    """How an index folder is made or changed; each method says on standard error what it did."""

    out: Path
    model: ModelOptions
    skip_bad_lines: bool
    compile: bool

    def build(self, corpora: Sequence[str], kind: str, uri: str, overwrite: bool) -> None:
        passages = self._load(corpora)
        encoder = self._encoder()
        passages, cut = self._fit(passages, encoder)
        folder = IndexFolder.build(
            passages, encoder, self.out, kind=kind, location=uri, overwrite=overwrite, cut=cut
        )
        self._say(f"{len(folder.corpus):,} passages, {kind} index")

    def update(self, corpora: Sequence[str], kind: str | None, uri: str) -> None:
        IndexFolder.open(self.out)  # before the model is loaded: says if there is none
        passages = self._load(corpora)
        encoder = self._encoder()
        passages, cut = self._fit(passages, encoder)
        name = self.model.model
        updated = update_index(
            self.out, passages, encoder, model=name, kind=kind, location=uri, cut=cut
        )
        self._say_updated(updated)

    def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        IndexFolder.open(self.out)
        passages = self._load(add) if add else None
        encoder = self._encoder()
        added = () if passages is None else self._fit(passages, encoder)[0]
        name = self.model.model
        self._say_updated(upsert_and_remove(self.out, encoder, added, remove, model=name))

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

    def _fit(self, passages: Corpus, encoder: PassageEncoder) -> tuple[Corpus, CutText]:
        fitted, cut = fit_documents(passages, encoder)
        if cut.passages:
            print(cut, file=sys.stderr)
        return fitted, cut

    def _say_updated(self, updated: Updated) -> None:
        self._say(f"{len(updated.folder.corpus):,} passages; {updated}")

    def _say(self, what: str) -> None:
        print(f"{self.out}: {what}", file=sys.stderr)
