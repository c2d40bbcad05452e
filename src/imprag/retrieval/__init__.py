"""Retrievers: lexical (BM25) and dense (a text encoder) beside the model's own."""
