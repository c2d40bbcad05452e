"""The FAISS kinds pass the suite that plug-ins pass."""

from imprag.testing.index_backend import IndexBackendSuite


class TestFlat(IndexBackendSuite):
    kind = "flat"


class TestHNSW(IndexBackendSuite):
    kind = "hnsw"
    least_recall = 0.95


class TestIVFPQ(IndexBackendSuite):
    kind = "ivfpq"
    count = 10_240  # the fewest that it trains on
    dimension = 8
    least_recall = 0.9
