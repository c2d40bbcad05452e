"""Corpora of passages: read, split and store them, or load a built-in one."""

from imprag.corpus.factbook import Fact, factbook_fields
from imprag.corpus.library import load_corpus
from imprag.corpus.passage import Passage
from imprag.corpus.readers import read_passages
from imprag.corpus.store import Corpus
from imprag.corpus.text import split_text

__all__ = [
    "Corpus",
    "Fact",
    "Passage",
    "factbook_fields",
    "load_corpus",
    "read_passages",
    "split_text",
]
