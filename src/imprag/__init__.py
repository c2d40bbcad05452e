"""ImpRAG: query-free retrieval-augmented generation with one language model."""
