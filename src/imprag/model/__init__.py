"""Layer groups, the implicit query, reading; loading base models and adapters."""

from imprag.model.base import load_base_model
from imprag.model.config import ImpRAGConfig
from imprag.model.encoder import PassageEncoder
from imprag.model.layer_groups import LayerGroups
from imprag.model.pretrained import load_pretrained, save_pretrained
from imprag.model.states import PassageStates, Prefix

__all__ = [
    "ImpRAGConfig",
    "LayerGroups",
    "PassageEncoder",
    "PassageStates",
    "Prefix",
    "load_base_model",
    "load_pretrained",
    "save_pretrained",
]
