"""Which examples are drawn when: endless rows of draws in which every position can be computed."""

import itertools
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from imprag.training.data import TrainingExample

Item = TypeVar("Item")
#: Examples, by number, that stand in one batch together.
Bundle = tuple[int, ...]
#: Makes the bundles of an epoch, in order, from the number of the epoch and its randomness.
EpochMaker = Callable[[int, random.Random], list[Bundle]]
#: Groups entities into grids: from the entities, the size of a group and an epoch's randomness.
Grouping = Callable[[Sequence[str], int, random.Random], list[Sequence[str]]]

_DECK = 1000  # draws after which every source has had its share


class Mixture:
    """Whose turn it is: sources in proportion to their weights.

    Draws come in decks in which every source has its share exactly, and at least one card.
    """

    def __init__(self, weights: Mapping[int, float], key: str) -> None:
        total = sum(weights.values())
        self._cards = {
            source: max(1, round(_DECK * weight / total)) for source, weight in weights.items()
        }
        self._size = sum(self._cards.values())
        self._key = key
        self._deck = lru_cache(maxsize=2)(self._shuffled_deck)

    def draw(self, position: int) -> tuple[int, int]:
        """The source of a draw, and how many draws it had before."""
        number, place = divmod(position, self._size)
        deck = self._deck(number)
        source = deck[place]
        return source, number * self._cards[source] + deck[:place].count(source)

    def _shuffled_deck(self, number: int) -> list[int]:
        deck = [source for source, cards in self._cards.items() for _ in range(cards)]
        random.Random(f"{self._key} deck {number}").shuffle(deck)
        return deck


class Epochs:
    """The bundles of a source, epoch after epoch, each in an order of its own."""

    def __init__(self, make: EpochMaker, key: str) -> None:
        self._epoch = lru_cache(maxsize=2)(
            lambda number: make(number, random.Random(f"{key} epoch {number}"))
        )
        self._starts = [0]  # of the epochs known so far, and the end of the last one

    def bundle(self, position: int) -> Bundle:
        """The bundle at a position in the endless row."""
        while position >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        number = bisect_right(self._starts, position) - 1
        return self._epoch(number)[position - self._starts[number]]


def single_epochs(indices: Iterable[int]) -> EpochMaker:
    def epoch(number: int, generator: random.Random) -> list[Bundle]:
        return [(index,) for index in shuffled(indices, generator)]

    return epoch


def grid_epochs(
    examples: Sequence[TrainingExample],
    indices: Sequence[int],
    shape: tuple[int, int],
    generator: random.Random,
    group: Grouping,
) -> EpochMaker:
    """Grids of ``shape`` with every cell once an epoch, its prompt templates taking turns.

    ``group`` says which entities share a grid.
    """
    rows, columns = shape
    facts = all(len(examples[index].group) == 2 for index in indices)
    height, grouped = (rows, group) if facts else (1, random_groups)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in shuffled(indices, generator):
        entity, *relation = examples[index].group
        # Questions about an article have no relation: each is a cell of its own.
        cells[entity][relation[0] if facts else str(index)].append(index)

    def epoch(number: int, generator: random.Random) -> list[Bundle]:
        tiles = []
        for entities in grouped(sorted(cells), height, generator):
            relations = sorted({relation for entity in entities for relation in cells[entity]})
            for chunk in _chunks(shuffled(relations, generator), columns):
                filled = [
                    cells[entity][relation]
                    for entity in entities
                    for relation in chunk
                    if relation in cells[entity]
                ]
                tiles.append(tuple(found[number % len(found)] for found in filled))
        return _packed(shuffled(tiles, generator), rows * columns)

    return epoch


class QuestionsAbout:
    """What the sources ask about a passage.

    Args:
        sources: numbers of the examples of each source.
        examples: by number.
    """

    def __init__(
        self, sources: Iterable[Sequence[int]], examples: Sequence[TrainingExample]
    ) -> None:
        self._examples = examples
        self._questions: dict[int, tuple[int, Hashable]] = {}  # source, and which of its questions
        self._about: dict[tuple[int, int], list[int]] = defaultdict(list)
        for source, numbers in enumerate(sources):
            for number in numbers:
                group = examples[number].group
                # The prompt templates of a relation are one question; other examples are one each.
                self._questions[number] = (source, group if len(group) == 2 else number)
                for row in examples[number].positives:
                    self._about[source, row].append(number)

    def draw(
        self, example: int, row: int, batch: Iterable[int], count: int, generator: random.Random
    ) -> list[int]:
        """At most ``count`` examples about the passage that ask what the batch does not ask yet.

        They are of the same source as the example, and those of its relation come first.
        """
        source, _ = self._questions[example]
        asked = {self._questions[number] for number in batch}
        found: list[int] = []
        for number in sorted(
            shuffled(self._about[source, row], generator),
            key=lambda number: self._relation(number) != self._relation(example),
        ):
            if len(found) < count and self._questions[number] not in asked:
                asked.add(self._questions[number])
                found.append(number)
        return found

    def _relation(self, number: int) -> tuple[str, ...]:
        return self._examples[number].group[1:]


def _packed(tiles: Iterable[Bundle], size: int) -> list[Bundle]:
    """The tiles in order; neighbours that are together no more than ``size`` are one bundle."""
    bundles: list[Bundle] = []
    for tile in tiles:
        if bundles and len(bundles[-1]) + len(tile) <= size:
            bundles[-1] += tile
        else:
            bundles.append(tile)
    return bundles


def random_groups(
    entities: Sequence[str], size: int, generator: random.Random
) -> list[Sequence[str]]:
    """Random groups of at most ``size`` entities."""
    return _chunks(shuffled(entities, generator), size)


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """As few chunks of at most ``size`` as can be, as equal as can be."""
    count = -(-len(items) // size)
    ends = [len(items) * n // count for n in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def shuffled(items: Iterable[Item], generator: random.Random) -> list[Item]:
    shuffled = list(items)
    generator.shuffle(shuffled)
    return shuffled


def sample(items: Sequence[Item], count: int, generator: random.Random) -> list[Item]:
    """At most ``count`` of the items, in random order."""
    return generator.sample(items, min(count, len(items)))
