"""Codecs of keys and values: floats, scaled integers, product quantization."""
