"""What a monitoring system reads of the engine, in Prometheus' form."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from imprag.kv_cache import PassageKVCache

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Measured(Protocol):
    """What the metrics read of an engine when they are asked for.

    Attributes:
        running: number of answers that are generated now.
        waiting: number of requests that wait now.
        kv_cache: counts the passages whose KV was found, and those that were encoded.
        kv_bytes: size of the passage KV that is held in RAM, in bytes.
    """

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def kv_cache(self) -> PassageKVCache: ...

    @property
    def kv_bytes(self) -> int: ...


class EngineMetrics(Collector):
    """Counters, gauges and histograms of one engine.

    Args:
        engine: what is measured.

    Attributes:
        registry: holds all of them.
    """

    def __init__(self, engine: Measured) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "imprag_requests", "Requests by how they ended", ("outcome",), registry=self.registry
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers")
        self.first_token = self._histogram("time_to_first_token", "From request to first token")
        self.inter_token = self._histogram("inter_token_latency", "Between two tokens")
        self.latency = self._histogram("request_latency", "From request to its last token")
        self.retrieval = self._histogram("retrieval", "Search of the index")
        self._engine = engine
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What is read of the engine itself."""
        engine = self._engine
        for name, text, value in (
            ("requests_running", "Answers that are generated now", engine.running),
            ("requests_waiting", "Requests that wait for a place", engine.waiting),
            ("kv_cache_bytes", "Passage KV held in RAM", engine.kv_bytes),
        ):
            yield GaugeMetricFamily(f"imprag_{name}", text, value=value)
        for name, text, value in (
            ("hits", "Passages whose KV was found", engine.kv_cache.hits),
            ("misses", "Passages that were encoded", engine.kv_cache.misses),
        ):
            yield CounterMetricFamily(f"imprag_kv_cache_{name}", text, value=value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"imprag_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        name = f"imprag_{name}_seconds"
        return Histogram(name, text, buckets=_SECONDS, registry=self.registry)
