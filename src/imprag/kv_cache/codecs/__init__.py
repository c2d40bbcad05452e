"""Codecs of keys and values: floats, scaled integers, product quantization, and those of plug-ins.

`register_codec` makes a class known under a name; packages offer theirs under the entry-point group
``imprag.codecs``.
"""

from imprag.kv_cache.codecs.base import CODECS, KINDS, Codec, Parts, register_codec, untrained_codec

__all__ = ["CODECS", "KINDS", "Codec", "Parts", "register_codec", "untrained_codec"]
