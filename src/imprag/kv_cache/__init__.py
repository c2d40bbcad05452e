"""The KV cache: keys and values of passages at layers b..t, stored, compressed or computed live."""

from imprag.kv_cache.build import build_kv_cache, predict_kv_cache
from imprag.kv_cache.cache import PassageKVCache
from imprag.kv_cache.disk_cache import DiskCache
from imprag.kv_cache.stores import DiskStore, RamStore

__all__ = [
    "DiskCache",
    "DiskStore",
    "PassageKVCache",
    "RamStore",
    "build_kv_cache",
    "predict_kv_cache",
]
