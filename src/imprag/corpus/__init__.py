"""Passages: reading, splitting, storing, fingerprint."""

from imprag.corpus.library import load_corpus
from imprag.corpus.passage import Passage
from imprag.corpus.readers import read_passages
from imprag.corpus.store import Corpus

__all__ = ["Corpus", "Passage", "load_corpus", "read_passages"]
