"""The kinds of index, each with the class that builds and searches it."""

from typing import TYPE_CHECKING

from imprag.io.registry import Registry

if TYPE_CHECKING:
    from imprag.index.passage_index import PassageIndex

_FAISS = "imprag.index.faiss.index:FaissIndex"
_MILVUS = "imprag.index.milvus:MilvusIndex"

#: Packages add kinds under the entry-point group ``imprag.index_backends``: subclasses of
#: `PassageIndex`, by the name that ``--kind`` takes.
INDEX_BACKENDS: "Registry[type[PassageIndex]]" = Registry(
    "index kind",
    "imprag.index_backends",
    {
        **dict.fromkeys(("flat", "ivfpq", "hnsw"), _FAISS),
        **dict.fromkeys(("milvus", "milvus-ivf"), _MILVUS),
        "pgvector": "imprag.index.pgvector:PgvectorIndex",
    },
)
register_index_backend = INDEX_BACKENDS.register
