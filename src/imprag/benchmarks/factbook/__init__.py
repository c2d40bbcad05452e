"""The factbook benchmark: examples of every task format, made from facts with known passages."""

from imprag.benchmarks.factbook.build import VERSION, build_factbook
from imprag.benchmarks.factbook.splits import choose, drawn
from imprag.tasks.benchmark import Benchmark

BENCHMARK = Benchmark(VERSION, build_factbook)

__all__ = ["BENCHMARK", "VERSION", "build_factbook", "choose", "drawn"]
