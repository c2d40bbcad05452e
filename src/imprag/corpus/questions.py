"""Tells passages from questions, which data sets for retrieval keep in the same folder."""

from collections.abc import Set
from pathlib import Path

from imprag.corpus.decoding import READ_ERRORS, name_without_compression
from imprag.corpus.json_records import json_records
from imprag.errors import ImpRAGError

#: The fields of a question in FlashRAG's form.
FLASHRAG_FIELDS = {"question", "golden_answers"}
#: The kinds of files that belong to a data set's questions.
QUESTIONS = BEIR, FLASHRAG = ("BEIR's queries and other files", "FlashRAG's questions")
_BEIR_CORPUS = "corpus.jsonl"
_BEIR_QUERIES = ("queries.jsonl", "queries.jsonl.gz")
_TEXT_FIELDS = {"text", "contents"}


def beir_queries(folder: Path) -> Path | None:
    """The file of queries of a folder in BEIR's form; None if it has another form."""
    if not (folder / "qrels").is_dir():
        return None
    return next((folder / name for name in _BEIR_QUERIES if (folder / name).is_file()), None)


def kind_of_questions(file: Path) -> str | None:
    """The kind of a data set's file that belongs to its questions; None if it may hold passages.

    Of a folder in BEIR's form only ``corpus.jsonl``, plain or compressed, holds passages.
    """
    folder = file.parent.parent if file.parent.name == "qrels" else file.parent
    if beir_queries(folder):
        is_corpus = file.parent == folder and name_without_compression(file) == _BEIR_CORPUS
        return None if is_corpus else BEIR
    if name_without_compression(file).endswith(".jsonl"):
        names = _first_names(file)
        if names >= FLASHRAG_FIELDS and not names & _TEXT_FIELDS:
            return FLASHRAG
    return None


def holds_passages(file: Path) -> bool:
    """Whether a ``.json`` file begins with a passage; such files may hold anything."""
    return bool(_first_names(file) & {*_TEXT_FIELDS, "wikipedia_title"})


def _first_names(file: Path) -> Set[str]:
    """The names of the fields of a file's first object; none if it has no such object."""
    try:
        first = next(json_records(file), None)
    except (ImpRAGError, *READ_ERRORS):
        return set()
    return first.fields.keys() if first and isinstance(first.fields, dict) else set()
