"""A corpus and an encoder without text and without a model, for tests and for killed processes."""

from collections.abc import Sequence

import numpy as np

from imprag.corpus.passage import Passage


class StubCorpus:
    """Passages ``p0``, ``p1`` ... that only know their row."""

    def __init__(self, count: int, fingerprint: str = "corpus-one") -> None:
        self.count = count
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self.count

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(f"p{row}", "", f"text {row}") for row in rows]


class ClusterEncoder:
    """Embeds by row: Gaussian clusters with dimensions of very different scale, as models have."""

    def __init__(self, dimension: int, clusters: int, noise: float = 1.0, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.centres = random.standard_normal((clusters, dimension), dtype=np.float32)
        self.scale = np.exp(random.normal(0, 0.7, dimension)).astype(np.float32)
        self.noise = noise
        self.encoded = 0

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        self.encoded += len(passages)
        return self.vectors(len(passages), seed=int(passages[0].id[1:]))

    def vectors(self, count: int, seed: int) -> np.ndarray:
        """Vectors of the same distribution, (count, dimension)."""
        random = np.random.default_rng([seed, 1])
        clusters, dimension = self.centres.shape
        noise = random.standard_normal((count, dimension), dtype=np.float32)
        chosen = self.centres[random.integers(0, clusters, count)]
        return (chosen + self.noise * noise) * self.scale / np.float32(dimension**0.5)
