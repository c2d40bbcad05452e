"""Benchmarks built from installed texts. They import the core; the core never imports them."""
