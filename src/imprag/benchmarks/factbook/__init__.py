"""The factbook benchmark: every task format, from facts whose passages are known."""

from imprag.benchmarks.factbook.build import VERSION, build_factbook
from imprag.benchmarks.factbook.splits import choose, drawn
from imprag.tasks.benchmark import Benchmark

BENCHMARK = Benchmark(VERSION, build_factbook)

__all__ = ["BENCHMARK", "VERSION", "build_factbook", "choose", "drawn"]
