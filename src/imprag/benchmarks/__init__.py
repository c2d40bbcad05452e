"""Benchmarks that are made from installed text. They import the core, never the reverse."""
