"""Counterfactual questions, whose answers can only be read (beyond the paper).

A model trained on the same facts again and again learns them by heart, and answers from memory
even if the passage states another answer. This script therefore replaces numbers and names, in the
passage and in the answers alike. Neeman et al. (2022, DisentQA) train on such questions; Longpre
et al. (2021) use them to measure whether a model reads or remembers.

    python examples/default_model/counterfactual.py squad/questions.jsonl \
        --corpus squad/passages.jsonl --out counterfactual-squad
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from imprag.corpus import Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.io.building import check_free
from imprag.io.files import expand_home
from imprag.tasks import Answer, Example, read_examples, write_open_corpus

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_SHORTEST_NAME = 3  # letters


def make_counterfactual(
    questions: str | Path, corpus: str | Path, out: str | Path, seed: int = 0
) -> dict[str, int]:
    """Write a folder of the questions and the passages that prove them, with other answers.

    In a passage and its answers, every number in an answer gets other digits, and every name in an
    answer becomes a proper noun that occurs at least twice in the corpus, if there is one. Numbers
    and names in the passage's title or questions are not replaced. A name is a capitalised word
    that never occurs in lower case in the corpus. Answers in other words are kept. Answers that
    the changed passage does not contain (ignoring case) are dropped, and so are questions without
    an answer or without a passage in the corpus.

    Args:
        questions: a file of examples whose provenance names passages of the corpus. A question
            keeps only the first of them.
        corpus: the corpus's name or path, as for `load_corpus`.
        out: the folder to create, with ``passages.jsonl`` (a corpus) and ``questions.jsonl``.
        seed: the seed of the new digits and names, 0 by default.

    Returns:
        The numbers of ``passages``, ``questions`` and ``left_out`` questions.

    Raises:
        ImpRAGError: a file cannot be read, no question can be kept, or the folder exists or cannot
            be written.
    """
    out = expand_home(out)
    check_free(out)
    passage_of = {passage.id: passage for passage in load_corpus(corpus)}
    asked: dict[str, list[Example]] = defaultdict(list)
    total = 0
    for example in read_examples(questions):
        total += 1
        if gold := [id for id in example.gold_ids if id in passage_of]:
            asked[gold[0]].append(example)
    lower, names = _vocabulary(passage.text for passage in passage_of.values())
    passages: dict[str, Passage] = {}

    def examples() -> Iterator[Example]:
        for id, group in tqdm(asked.items(), "other facts", unit=" passages", disable=None):
            passage = passage_of[id]
            generator = random.Random(f"{seed} counterfactual {id}")
            other = _replacements(passage, group, lower, names, generator)
            changed = replace(
                passage, id=f"counterfactual/{id}", text=replaced(passage.text, other)
            )
            for example in group:
                if kept := _changed(example, changed, other):
                    passages[changed.id] = changed
                    yield kept
        if not passages:
            raise ImpRAGError(
                f"no question of {questions} has a passage of {corpus} that states its answer"
            )

    counts = write_open_corpus(out, examples(), passages)
    return {**counts, "left_out": total - counts["questions"]}


def replaced(text: str, other: Mapping[str, str]) -> str:
    """Replace numbers and words in a text; an upper-case word gets an upper-case replacement.

    Args:
        text: the text.
        other: the replacements, by number or by word in lower case.
    """

    def one(found: re.Match[str]) -> str:
        token = found[0]
        new = other.get(token.lower(), token)
        return new.upper() if token.isupper() else new

    return _TOKEN.sub(one, text)


def _changed(example: Example, passage: Passage, other: Mapping[str, str]) -> Example | None:
    """The question about the changed passage; None if the passage contains none of its answers."""
    text = passage.text.casefold()
    answers = dict.fromkeys(replaced(answer, other) for answer in example.answers)
    stated = [answer for answer in answers if answer.casefold() in text]
    if not stated:
        return None
    provenance = [{"passage_id": passage.id}]
    return replace(
        example,
        id=f"counterfactual/{example.id}",
        output=[Answer(answer, provenance) for answer in stated],
    )


def _replacements(
    passage: Passage,
    group: Sequence[Example],
    lower: set[str],
    names: Sequence[str],
    generator: random.Random,
) -> dict[str, str]:
    """Replacements for the numbers and names in the answers to a passage's questions."""
    fixed = {
        token.lower()
        for text in (passage.title, *(example.input for example in group))
        for token in _TOKEN.findall(text)
    }
    found = (
        token for example in group for answer in example.answers for token in _TOKEN.findall(answer)
    )
    other = {}
    for token in dict.fromkeys(found):
        if token.lower() in fixed:
            continue
        if token[0].isdigit():
            other[token] = _other_number(token, generator)
        elif (
            names
            and len(token) >= _SHORTEST_NAME
            and token[0].isupper()
            and token.lower() not in lower
        ):
            other[token.lower()] = generator.choice(names)
    return other


def _other_number(number: str, generator: random.Random) -> str:
    """A random number of the same form; only a zero may become a zero."""
    return "".join(
        str(generator.randint(0 if digit == "0" else 1, 9)) if digit.isdigit() else digit
        for digit in number
    )


def _vocabulary(texts: Iterable[str]) -> tuple[set[str], list[str]]:
    """The words that occur in lower case, and the proper nouns that occur at least twice."""
    times: Counter[str] = Counter()
    for text in texts:
        times.update(_TOKEN.findall(text))
    lower = {word for word in times if word.islower()}
    names = [
        word
        for word, count in times.items()
        if count > 1
        and len(word) >= _SHORTEST_NAME
        and word.istitle()
        and word.lower() not in lower
    ]
    return lower, names


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder given on the command line, and print the counts as JSON."""
    parser = argparse.ArgumentParser(
        description="Make questions and passages with counterfactual answers."
    )
    parser.add_argument(
        "questions", help="examples whose provenance names passages of the corpus, as JSONL"
    )
    parser.add_argument("--corpus", required=True, help="the passages, as for imprag index")
    parser.add_argument("--out", required=True, help="the folder to create")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new digits and names")
    asked = parser.parse_args(arguments)
    try:
        counts = make_counterfactual(asked.questions, asked.corpus, asked.out, asked.seed)
    except ImpRAGError as error:
        parser.error(str(error))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
