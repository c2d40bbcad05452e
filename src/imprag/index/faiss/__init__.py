"""FAISS back end: exact, IVF-PQ and HNSW indexes over memory-mapped vectors."""
