"""Makes examples from facts: questions, two-hop questions, slots, true and false statements."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product

from imprag.benchmarks.factbook.facts import KnownFact
from imprag.benchmarks.factbook.names import Country
from imprag.benchmarks.factbook.relations import fill
from imprag.benchmarks.factbook.splits import choose, drawn
from imprag.benchmarks.factbook.values import without_accents
from imprag.tasks.example import Answer, Example

_HOPS_PER_BRIDGE = 4
_STEM = 4  # letters: "Chad" and "Chadian", "Panama" and "Panama City" share their stem
# Words in the names of many countries, which hint at no particular one.
_COMMON_WORDS = (
    "the republic kingdom state states united union island islands territory saint north south "
    "east west central northern southern western eastern democratic people federal federation "
    "commonwealth socialist islamic arab great special administrative region country overseas "
    "collectivity principality lands"
)


def questions(facts: Iterable[KnownFact], seed: int, *, every_wording: bool) -> Iterator[Example]:
    """Yield questions about single facts, in one or in every wording of the relation."""
    for fact in facts:
        wordings = fact.relation.questions
        if not every_wording:
            wordings = (choose(wordings, seed, "question", *_key(fact)),)
        for wording in wordings:
            number = fact.relation.questions.index(wording) + 1
            yield Example(
                id=f"question/{_slug(fact)}/{number}",
                input=fill(wording, fact.country),
                output=_output(fact.answers, fact.gold),
                meta={**_meta(fact), "wording": number},
            )


def slots(facts: Iterable[KnownFact]) -> Iterator[Example]:
    """Yield slot-filling examples, such as ``Chad [SEP] capital``."""
    for fact in facts:
        yield Example(
            id=f"slot/{_slug(fact)}",
            input=f"{fact.country.name} [SEP] {fact.relation.name}",
            output=_output(fact.answers, fact.gold),
            meta=_meta(fact),
        )


def two_hop(
    facts: Sequence[KnownFact], all_facts: Iterable[KnownFact], seed: int
) -> Iterator[Example]:
    """Yield questions about a country that another fact describes; both facts are in ``facts``.

    The description fits only one country of ``all_facts`` and does not hint at its name. The two
    facts are stated in different passages.
    """
    times = Counter(_value_key(fact) for fact in all_facts)
    of_country = defaultdict(list)
    for fact in facts:
        of_country[fact.country.code].append(fact)
    for first in facts:
        if first.relation.partner and first.partner:
            asked, description = first.partner, fill(first.relation.partner, first.country)
        elif first.relation.bridge and times[_value_key(first)] == 1 and not _hints(first):
            asked = first.country
            description = first.relation.bridge.replace("{V}", first.shown)
            if asked.dependent:
                description = description.replace("the country", "the territory")
        else:
            continue
        description = description[:1].lower() + description[1:]
        seconds = [
            fact
            for fact in of_country[asked.code]
            if fact.relation.field != first.relation.field and not {*fact.gold} & {*first.gold}
        ]
        seconds.sort(key=lambda fact: drawn(seed, "two hop", *_key(first), *_key(fact)))
        for second in seconds[:_HOPS_PER_BRIDGE]:
            wordings = [text for text in second.relation.questions if "{X's}" not in text]
            wording = choose(wordings, seed, "two hop", *_key(first), *_key(second))
            yield Example(
                id=f"two-hop/{_slug(first)}/{_slug(second)}",
                input=_capitalized(wording.replace("{X}", description)),
                output=_two_hop_output(first, second),
                meta={**_meta(second), "bridge": _meta(first)},
            )


def statements(facts: Iterable[KnownFact], seed: int) -> Iterator[Example]:
    """Yield statements, half of which are false: they have the value of another country.

    Every fact gives a true and a false statement in the same wording. The false statements of a
    relation permute the values of its true ones, so that neither country nor value nor wording
    reveals the label.
    """
    of_relation = defaultdict(list)
    for fact in facts:
        if not _hints(fact):
            of_relation[fact.relation.name].append(fact)
    for relation in sorted(of_relation):
        for fact, other in _exchange(of_relation[relation], seed):
            wording = choose(fact.relation.statements, seed, "statement", *_key(fact))
            for label, stated in (("True", fact), ("False", other)):
                yield Example(
                    id=f"statement/{_slug(fact)}/{label.lower()}",
                    input=fill(wording, fact.country, stated.shown),
                    output=_output([label], fact.gold),
                    meta=_meta(fact),
                )


def _exchange(facts: list[KnownFact], seed: int) -> list[tuple[KnownFact, KnownFact]]:
    """Pair the facts of a relation: each is once first and once second, and the second's value is
    wrong for the first's country. Facts that cannot be paired are dropped."""
    others = sorted(facts, key=lambda fact: drawn(seed, "exchange", *_key(fact)))
    place = 0
    while place < len(facts):
        fact, other = facts[place], others[place]
        if not _alike(fact, other):
            place += 1
            continue
        for swap, (swap_fact, swap_other) in enumerate(zip(facts, others, strict=True)):
            if not _alike(fact, swap_other) and not _alike(swap_fact, other):
                others[place], others[swap] = swap_other, other
                break
        else:
            taker = others.index(fact)
            others[taker] = other
            del facts[place], others[place]
            place = min(place, taker)
    return list(zip(facts, others, strict=True))


def _alike(fact: KnownFact, other: KnownFact) -> bool:
    """Whether the other fact's value may be partly right for the country, or hints at it."""
    right = [_words(answer) for answer in fact.answers]
    wrong = [_words(answer) for answer in other.answers]
    return any(a <= b or b <= a for a, b in product(right, wrong)) or _names_country(
        other.shown, fact.country
    )


def _hints(fact: KnownFact) -> bool:
    return _names_country(fact.shown, fact.country)


def _names_country(value: str, country: Country) -> bool:
    """Whether the value resembles a name of the country: ``Panama City``, ``Algerian dinars``."""
    if any(_words(name) <= _words(value) for name in country.names):
        return True
    named = " ".join([*country.names, *country.demonyms, *country.former_names])
    return not _stems(value).isdisjoint(_stems(named) - _stems(_COMMON_WORDS))


@lru_cache(maxsize=2**16)
def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _words(text) if len(word) >= _STEM)


@lru_cache(maxsize=2**16)
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+|[^\w\s]", without_accents(text).casefold()))


def _value_key(fact: KnownFact) -> tuple[str, str]:
    return fact.relation.name, fact.answers[0].casefold()


def _two_hop_output(first: KnownFact, second: KnownFact) -> list[Answer]:
    """Answers whose proof is one passage of each fact; any passage of a fact will do."""
    best, *forms = second.answers
    pairs = product(first.gold, second.gold)
    proofs = [[{"passage_id": id} for id in pair] for pair in pairs]
    return [*(Answer(best, proof) for proof in proofs), *map(Answer, forms)]


def _output(answers: Sequence[str], gold: Sequence[str]) -> list[Answer]:
    """The best form with the passages, each of which proves it alone, and then the other forms."""
    best, *forms = answers
    return [Answer(best, [{"passage_id": id} for id in gold]), *map(Answer, forms)]


def _meta(fact: KnownFact) -> dict[str, str]:
    return {"country": fact.country.name, "relation": fact.relation.name}


def _key(fact: KnownFact) -> tuple[str, str]:
    return fact.country.name, fact.relation.name


def _slug(fact: KnownFact) -> str:
    relation = re.sub(r"\W+", "-", fact.relation.name.casefold())
    return f"{fact.country.code}/{relation}"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
