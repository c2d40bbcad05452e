"""Splits and choices by hash: they depend only on the seed and the names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

SPLITS = ("train", "dev", "test")
#: The shares of countries, and of wiki10k articles, in each split.
ENTITY_SHARES = {"train": 0.60, "dev": 0.15, "test": 0.25}
#: The shares of relations. Those of "dev" and "test" are asked only in their own split.
RELATION_SHARES = {"train": 0.70, "dev": 0.10, "test": 0.20}

Item = TypeVar("Item")


def split_names(
    names: Iterable[str], shares: Mapping[str, float], seed: int, kind: str
) -> dict[str, str]:
    """The split of every name. The splits' sizes are the shares, rounded to whole names.

    Args:
        names: the names to split.
        shares: each split's share of the names; they sum to 1.
        seed: the seed of the split.
        kind: the kind of names; different kinds are split independently.
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
    """A pseudo-random number that depends only on the seed and the names."""
    key = "\t".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def choose(items: Sequence[Item], seed: int, *names: str) -> Item:
    """One of the items, chosen by the seed and the names."""
    return items[drawn(seed, *names) % len(items)]
