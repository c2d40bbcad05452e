"""The factbook benchmark: every task format, from facts whose passages are known."""

from imprag.tasks.factbook.build import build_factbook, load_benchmark

__all__ = ["build_factbook", "load_benchmark"]
