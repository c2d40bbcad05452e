"""Layer groups, the implicit query, reading; loading base models and adapters."""

from imprag.model.base import load_base_model
from imprag.model.config import ImpRAGConfig
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.load import load_pretrained, save_pretrained
from imprag.model.model import ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder

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
