"""The lexical index: BM25 over the words of title and text, by tantivy.

It lies next to the embeddings of an index folder, memory-mapped from disk, and is searched with the
prompt's own words. tantivy's BM25 is Lucene's (k1 = 1.2, b = 0.75; lengths over 39 terms are
rounded). Terms are words in lower case, and characters and pairs of them in scripts without spaces
(:func:`imprag.corpus.words.search_terms`). There is no stop list, which would leave nothing of "The
Who", and no stemmer.
"""

import importlib.metadata
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tantivy

from imprag.corpus import Corpus
from imprag.corpus.words import search_terms
from imprag.errors import ImpRAGError
from imprag.io.building import (
    StoredFile,
    building_folder,
    check_free,
    claim,
    discard,
    move_into_place,
    remove_work,
    sweep,
    versions,
)
from imprag.io.files import expand_home, read_json, sha256, write_json
from imprag.io.locking import only_builder
from imprag.io.progress import progress_bar

#: Names the terms and the formula; an index of other ones is built again.
TERMS = "words, characters and pairs; BM25 with k1 1.2 and b 0.75"
MANIFEST = "lexical.json"
FORMAT_VERSION = 1

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
#: Terms of a query with their weights.
Terms = Mapping[str, float]

_COMMIT_ROWS = 1 << 16  # a killed build loses at most so many passages
_READ_ROWS = 1024
_WRITER_BYTES = 64_000_000


def query_terms(text: str) -> Terms:
    """The terms of a text, each weighted by the number of times that it occurs."""
    return Counter(search_terms(text))


class LexicalIndex:
    """BM25 scores of a corpus' passages for weighted terms.

    Args:
        path: a folder that :meth:`build` made.
        corpus: the passages that it was made of.

    Raises:
        ImpRAGError: there is no finished lexical index, it is damaged or of another corpus, or its
            terms are those of another version.
    """

    def __init__(self, path: Path, corpus: Corpus) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        if self.manifest["corpus_fingerprint"] != corpus.fingerprint:
            raise _unusable(path, "was made from another corpus")
        if self.manifest["terms"] != TERMS:
            raise _unusable(path, "holds the terms of another version of ImpRAG")
        for file in _stored_files(self.manifest):
            file.check(path)
        self._schema = _schema()
        try:
            self._folder = _view(path)
            self._searcher = _open(Path(self._folder.name)).searcher()
        except (ValueError, OSError) as error:
            raise _unusable(path, "cannot be read") from error

    @classmethod
    def build(cls, corpus: Corpus, path: Path, *, progress: bool = True) -> "LexicalIndex":
        """Make a lexical index, or resume where an interrupted call stopped.

        Passages stream from the corpus; a commit every 65,536 of them is what a killed build
        resumes from. An index of another corpus or version, or a damaged one, is replaced: it can
        be made again at any time.

        Args:
            corpus: the passages.
            path: the folder.
            progress: show a bar on standard error.

        Raises:
            ImpRAGError: the disk is full, the folder cannot be written, or it holds something else.
        """
        path = expand_home(path)
        if (made := cls._finished(path, corpus)) is not None:
            return made
        with only_builder(path) as alone:
            if (made := cls._finished(path, corpus)) is not None:
                return made
            work = building_folder(path)
            if not (path / MANIFEST).is_file():
                check_free(path)
            if path.exists():
                discard(path, work)
            plan = {"corpus_fingerprint": corpus.fingerprint, "terms": TERMS}
            claim(work, plan, alone=alone, overwrite=True)
            _write(corpus, work / "index", progress)
            move_into_place(work / "index", path)
            remove_work(work)
        return cls(path, corpus)

    @classmethod
    def _finished(cls, path: Path, corpus: Corpus) -> "LexicalIndex | None":
        try:
            return cls(path, corpus)
        except ImpRAGError:
            return None

    def search(self, terms: Terms, n: int) -> tuple[IntArray, FloatArray]:
        """The n passages with the highest scores, best first.

        Of equal scores among those found the lower row comes first; which of them are found at
        the end of the ranking depends on how tantivy has laid out its segments.

        Returns:
            rows of the corpus and BM25 scores, (found,) each; passages that share no term with the
            query are not found.
        """
        query = self._query(terms)
        hits = self._searcher.search(query, n, count=False).hits if n else []
        scores = np.array([score for score, _ in hits], np.float32)
        rows = self._rows([address for _, address in hits])
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    def scores(self, terms: Terms, rows: IntArray) -> FloatArray:
        """BM25 scores of given passages; 0 for those that share no term with the query.

        Args:
            terms: of the query.
            rows: distinct rows of the corpus, (number,).

        Returns:
            (number,).
        """
        scores = np.zeros(len(rows), np.float32)
        if not len(rows) or not terms:
            return scores
        these = tantivy.Query.term_set_query(self._schema, "row", rows.tolist())
        query = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Must, self._query(terms)),
                (tantivy.Occur.Must, tantivy.Query.const_score_query(these, 0.0)),
            ]
        )
        hits = self._searcher.search(query, len(rows), count=False).hits
        at = {row: n for n, row in enumerate(rows.tolist())}
        places = [at[row] for row in self._rows([address for _, address in hits]).tolist()]
        scores[places] = [score for score, _ in hits]
        return scores

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises:
            ImpRAGError: a file was changed.
        """
        for file in _stored_files(self.manifest):
            file.verify(self.path)

    def _query(self, terms: Terms) -> tantivy.Query:
        clauses = [
            (tantivy.Occur.Should, _boosted(self._schema, term, weight))
            for term, weight in terms.items()
            if weight > 0
        ]
        return tantivy.Query.boolean_query(clauses)

    def _rows(self, addresses: list[Any]) -> IntArray:
        found = self._searcher.fast_field_values("row", addresses) if addresses else []
        return np.array(found, np.int64)


def _boosted(schema: tantivy.Schema, term: str, weight: float) -> tantivy.Query:
    query = tantivy.Query.term_query(schema, "text", term, index_option="freq")
    return query if weight == 1 else tantivy.Query.boost_query(query, float(weight))


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name="terms", index_option="freq")
    builder.add_unsigned_field("row", stored=False, indexed=True, fast=True)
    return builder.build()


def _open(path: Path) -> tantivy.Index:
    """The tantivy index in a folder; a new one if the folder holds none."""
    index = tantivy.Index(_schema(), path=str(path))
    whitespace = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
    index.register_tokenizer("terms", whitespace)
    return index


def _view(path: Path) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder with links to the files of a lexical index.

    tantivy has no mode for reading only: it makes lock files in the folder that it opens, from a
    thread of its own, even while the folder is being deleted.
    """
    view = tempfile.TemporaryDirectory(prefix="imprag-lexical-", ignore_cleanup_errors=True)
    for file in path.iterdir():
        if file.suffix != ".lock":
            try:
                (Path(view.name) / file.name).symlink_to(file.absolute())
            except OSError:  # Windows allows links to some users only
                shutil.copyfile(file, Path(view.name) / file.name)
    return view


def _write(corpus: Corpus, folder: Path, progress: bool) -> None:
    """Add the passages that an index lacks, and its manifest at last."""
    if (folder / MANIFEST).is_file():
        return  # it is whole, and only remains to be moved
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            index = _open(folder)
        except ValueError:  # a part that was killed in the wrong moment; nothing else can be lost
            shutil.rmtree(folder)
            folder.mkdir()
            index = _open(folder)
        done = index.searcher().num_docs
        writer = index.writer(heap_size=_WRITER_BYTES, num_threads=1)  # keeps the order
        with progress_bar("Lexical index", len(corpus), progress, done) as bar:
            while done < len(corpus):
                rows = range(done, min(done + _READ_ROWS, len(corpus)))
                for row, passage in zip(rows, corpus.passages(rows), strict=True):
                    terms = " ".join(search_terms(f"{passage.title} {passage.text}"))
                    document = tantivy.Document()
                    document.add_text("text", terms)
                    document.add_unsigned("row", row)
                    writer.add_document(document)
                done += len(rows)
                bar.update(len(rows))
                if done % _COMMIT_ROWS == 0:
                    writer.commit()
        writer.commit()
        writer.wait_merging_threads()
    except (ValueError, OSError) as error:  # tantivy raises ValueError for every failure
        raise ImpRAGError(
            f"cannot write {folder}: {error}; free some space, then run the same command again"
        ) from error
    sweep(folder)  # a kill while the manifest was written left its temporary file
    files = sorted(path for path in folder.iterdir() if path.suffix != ".lock")
    for file in files:  # tantivy lets nobody else read some of them
        file.chmod((folder / ".tantivy-writer.lock").stat().st_mode)
    for lock in folder.glob(".*.lock"):
        lock.unlink()
    manifest = {
        "format_version": FORMAT_VERSION,
        "corpus_fingerprint": corpus.fingerprint,
        "count": len(corpus),
        "terms": TERMS,
        "files": [asdict(StoredFile(f.name, f.stat().st_size, sha256(f))) for f in files],
        "versions": versions(tantivy=importlib.metadata.version("tantivy")),
    }
    write_json(folder / MANIFEST, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        if building_folder(path).is_dir():
            raise ImpRAGError(
                f"the lexical index {path} is not finished; run the imprag index command that "
                "builds it again, and it resumes where it stopped"
            )
        raise ImpRAGError(f"{path} holds no lexical index (there is no {MANIFEST})")
    try:
        content: dict[str, Any] = read_json(file)
        version = content["format_version"]
        _stored_files(content)
        known = {"corpus_fingerprint", "terms"} <= content.keys()
    except (ImpRAGError, AttributeError, KeyError, TypeError) as error:
        raise _unusable(path, f"is damaged ({MANIFEST} cannot be read)") from error
    if version != FORMAT_VERSION or not known:
        raise _unusable(path, f"has format version {version}, not {FORMAT_VERSION}")
    return content


def _unusable(path: Path, reason: str) -> ImpRAGError:
    return ImpRAGError(
        f"the lexical index {path} {reason}; run the imprag index command that made it again, "
        "which makes this part anew and keeps the embeddings"
    )


def _stored_files(manifest: dict[str, Any]) -> list[StoredFile]:
    return [StoredFile(**file) for file in manifest["files"]]
