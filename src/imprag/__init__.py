"""ImpRAG: query-free retrieval-augmented generation with one language model.

The public names are imported when they are first used, so that ``import imprag`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imprag.corpus import Corpus as Corpus
    from imprag.corpus import Passage as Passage
    from imprag.evaluation.runner import evaluate as evaluate
    from imprag.index import PassageIndex as PassageIndex
    from imprag.kv_cache import PassageKVCache as PassageKVCache
    from imprag.model import ImpRAGConfig as ImpRAGConfig
    from imprag.model import ImpRAGModel as ImpRAGModel
    from imprag.pipeline import ImpRAG as ImpRAG
    from imprag.tasks import load_task as load_task

_HOMES = {
    "Corpus": "imprag.corpus",
    "ImpRAG": "imprag.pipeline",
    "ImpRAGConfig": "imprag.model",
    "ImpRAGModel": "imprag.model",
    "Passage": "imprag.corpus",
    "PassageIndex": "imprag.index",
    "PassageKVCache": "imprag.kv_cache",
    "evaluate": "imprag.evaluation.runner",
    "load_task": "imprag.tasks",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imprag' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
