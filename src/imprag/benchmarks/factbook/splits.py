"""Splits by hash: the same for the same seed, whatever else there is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

SPLITS = ("train", "dev", "test")
#: Shares of the countries, and of the articles of wiki10k.
ENTITY_SHARES = {"train": 0.60, "dev": 0.15, "test": 0.25}
#: Shares of the relations. Those of "dev" and "test" are asked in those splits only.
RELATION_SHARES = {"train": 0.70, "dev": 0.10, "test": 0.20}

Item = TypeVar("Item")


def split_names(
    names: Iterable[str], shares: Mapping[str, float], seed: int, kind: str
) -> dict[str, str]:
    """The split of every name; the splits have their shares of the names as exactly as can be.

    Args:
        kind: of the names; other kinds are split another way.
    """
    ranked = sorted(names, key=lambda name: drawn(seed, kind, name))
    split_of = {}
    start, share = 0, 0.0
    for split, part in shares.items():
        share += part
        end = round(share * len(ranked))
        split_of.update(dict.fromkeys(ranked[start:end], split))
        start = end
    return split_of


def drawn(seed: int, *names: str) -> int:
    """A number drawn by the seed and the names alone."""
    key = "\t".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def choose(items: Sequence[Item], seed: int, *names: str) -> Item:
    """One of the items, drawn by the seed and the names."""
    return items[drawn(seed, *names) % len(items)]
