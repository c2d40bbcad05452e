"""Layer groups, the implicit query, reading; loading base models and adapters."""

from imprag.model.base import load_base_model
from imprag.model.config import ImpRAGConfig
from imprag.model.encoder import PassageEncoder
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.model import ImpRAGModel
from imprag.model.pretrained import load_pretrained, save_pretrained

__all__ = [
    "EncodedPassages",
    "ImpRAGConfig",
    "ImpRAGModel",
    "PassageEncoder",
    "PassageKV",
    "load_base_model",
    "load_pretrained",
    "save_pretrained",
]
