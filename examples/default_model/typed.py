"""Questions as people type them, made from whole questions (beyond the paper).

Each question gives one of these: small letters without a question mark ("what's the capital of
chad"), a few words ("capital of chad", "Chad capital"), a question in the other direction ("which
country's capital is N'Djamena"), one between two values, or one whether a value is right.

    python examples/default_model/typed.py factbook-bench/factbook/qa/train.jsonl --out typed.jsonl
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from question_files import make_file, question_parser

from imprag.tasks import Answer, Example, read_examples

_LEAD = re.compile(r"^what (?:is|are|was|were) (?:the )?", re.IGNORECASE)
_WORDS = (
    "{entity} {relation}",
    "{relation} {entity}",
    "{entity}: {relation}",
    "{relation} of {entity}?",
)
_REVERSED = (
    "which country's {relation} is {value}?",
    "Which country has {value} as its {relation}?",
    "what country's {relation} is {value}",
    "The {relation} is {value}. Which country is it?",
)
_BETWEEN = (
    "is {entity}'s {relation} {first} or {second}?",
    "Is the {relation} of {entity} {first} or {second}?",
    "{first} or {second}: what is the {relation} of {entity}",
    "{entity} {relation}: {first} or {second}?",
)
# As in verification.py, True or False is the answer where the question says true.
_JUDGED = (
    ("is {value} the {relation} of {entity}?", "yes", "no"),
    ("Is {value} {entity}'s {relation}?", "yes", "no"),
    ("is it true that the {relation} of {entity} is {value}?", "True", "False"),
    ("{entity}'s {relation} is {value}, right?", "yes", "no"),
)


def typed(examples: Iterable[Example], seed: int = 0) -> Iterator[Example]:
    """One typed question for each question.

    Args:
        examples: questions. Those whose ``meta`` names a country and a relation can be reversed and
            judged, the others only shortened.
        seed: draws the form of each.
    """
    examples = list(examples)
    values = _values(examples)
    for example in examples:
        generator = random.Random(f"{seed} typed {example.id}")
        form = generator.choice(_ABOUT_FACTS if _is_fact(example) else _ABOUT_TEXTS)
        text, answers = form(example, generator, values)
        provenance = example.output[0].provenance
        yield Example(
            f"typed-{example.id}",
            text,
            [Answer(answer, provenance) for answer in answers],
            example.meta,
            task=example.task,
        )


Values = Mapping[str, Counter[str]]
"""How many entities have a value, by relation."""


def _shortened(example: Example, generator: random.Random, _: Values) -> tuple[str, list[str]]:
    text = example.input.rstrip(" ?.")
    if generator.random() < 0.5:
        text = re.sub(r"^what is ", "what's ", text, flags=re.IGNORECASE)
    elif generator.random() < 0.5:
        text = _LEAD.sub("", text)
    return (text.lower() if generator.random() < 0.7 else text), example.answers


def _words(example: Example, generator: random.Random, _: Values) -> tuple[str, list[str]]:
    text = generator.choice(_WORDS).format(entity=_entity(example), relation=_relation(example))
    return (text.lower() if generator.random() < 0.4 else text), example.answers


def _reversed(example: Example, generator: random.Random, values: Values) -> tuple[str, list[str]]:
    relation, value = _relation(example), example.answers[0]
    if values[relation][value] > 1 or not re.search(r"[^\W\d]{3}", value):
        return _shortened(example, generator, values)
    text = generator.choice(_REVERSED).format(relation=relation, value=value)
    return text, [_entity(example)]


def _judged(example: Example, generator: random.Random, values: Values) -> tuple[str, list[str]]:
    relation, value = _relation(example), example.answers[0]
    others = _others(example, values)
    right = not others or generator.random() < 0.5
    said = value if right else generator.choice(others)
    wording, yes, no = generator.choice(_JUDGED)
    text = wording.format(entity=_entity(example), relation=relation, value=said)
    return text, [yes if right else no]


def _between(example: Example, generator: random.Random, values: Values) -> tuple[str, list[str]]:
    relation, value = _relation(example), example.answers[0]
    others = _others(example, values)
    if not others:
        return _shortened(example, generator, values)
    first, second = generator.sample([value, generator.choice(others)], 2)
    text = generator.choice(_BETWEEN).format(
        entity=_entity(example), relation=relation, first=first, second=second
    )
    return text, example.answers


_Form = Callable[[Example, random.Random, Values], tuple[str, list[str]]]
_ABOUT_TEXTS: Sequence[_Form] = (_shortened,)
_ABOUT_FACTS: Sequence[_Form] = (_shortened, _words, _reversed, _between, _judged)


def _is_fact(example: Example) -> bool:
    return isinstance(example.meta.get("country"), str) and "relation" in example.meta


def _entity(example: Example) -> str:
    return str(example.meta["country"])


def _relation(example: Example) -> str:
    return str(example.meta["relation"])


def _others(example: Example, values: Values) -> list[str]:
    """What is no answer, but one to the same question about another entity."""
    return [other for other in values[_relation(example)] if other not in example.answers]


def _values(examples: Iterable[Example]) -> Values:
    entities: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for example in examples:
        if _is_fact(example):
            entities[_relation(example)][example.answers[0]].add(_entity(example))
    return {
        relation: Counter({value: len(names) for value, names in found.items()})
        for relation, found in entities.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions as people type them.", "forms", questions="examples, as JSONL"
    )
    make_file(parser, arguments, lambda asked: typed(read_examples(asked.questions), asked.seed))


if __name__ == "__main__":
    main()
