"""Passage memory: keys and values of passages at layers b..t, stored, compressed, or live."""

from imprag.memory.build import build_memory, predict_memory
from imprag.memory.passage_memory import PassageMemory
from imprag.memory.stores import DiskStore, RamStore

__all__ = ["DiskStore", "PassageMemory", "RamStore", "build_memory", "predict_memory"]
