"""Retrievers: implicit (the model's own), lexical (BM25), hybrid, dense (a text encoder)."""

from imprag.retrieval.registry import RetrieverContext, register_retriever
from imprag.retrieval.retriever import RetrievedPassage, Retriever

__all__ = ["RetrievedPassage", "Retriever", "RetrieverContext", "register_retriever"]
