"""The passage KV that an engine holds in RAM."""

import torch

from imprag.kv_cache.codecs.base import untrained_codec
from imprag.kv_cache.disk_cache import DiskCache
from imprag.kv_cache.stores import RamStore, TieredStore
from imprag.pipeline import ImpRAG


def hold_passages(rag: ImpRAG, max_bytes: int) -> RamStore | None:
    """Let a pipeline hold the KV of passages in RAM, besides those of a folder or cache on disk.

    Args:
        rag: the pipeline. One that holds passages in RAM already is left as it is.
        max_bytes: greatest size; the least recently used passages leave.

    Returns:
        what holds them; None if the model's passages depend on each other and cannot be stored.
    """
    if rag.config.passage_encoding != "independent":
        return None
    store = rag.kv_cache.store
    if isinstance(store, RamStore):
        return store
    if isinstance(store, TieredStore):
        return store.ram
    if store is not None:
        tiers = TieredStore(store, max_bytes, hold_all=isinstance(store, DiskCache))
        rag.kv_cache.store = tiers
        return tiers.ram
    # Nothing is lost, so that answers do not depend on what is held.
    codec = "bf16" if rag.model.lm.dtype == torch.bfloat16 else "fp32"
    ram = RamStore(untrained_codec(codec, rag.model.decoder.head_dim), max_bytes)
    rag.kv_cache.store = ram
    return ram
