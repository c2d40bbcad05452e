"""Questions whose answers are not true (beyond the paper), so that they can only be read.

Who trains on the same facts again and again learns them by heart, and answers from memory even
where the passage says something else. So numbers and names are replaced by others, in the passage
and in the answers alike. Neeman et al. (2022, DisentQA) train on such questions; Longpre et al.
(2021) use them to see whether a model reads or remembers.

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
    """Make a folder of the questions and of the passages that prove them, with other answers.

    In a passage, every number that is in an answer gets other digits, and every name in an answer
    becomes a proper noun that the corpus has twice, if there are any; except for those in the
    passage's title or in one of its questions. A name is a word with a capital that is nowhere in
    the corpus in lower case. Answers in other words stay, and those that the changed passage does
    not have (whatever their case) are left out, as are questions that keep none and those without
    a passage of the corpus.

    Args:
        questions: file of examples whose provenance names passages of the corpus; the first of
            them is the one that a question keeps.
        corpus: name or path, as for `load_corpus`.
        out: folder to make, with ``passages.jsonl`` (a corpus) and ``questions.jsonl``.
        seed: draws the digits and names, by passage.

    Returns:
        The numbers of ``passages``, ``questions`` and ``left_out`` questions.

    Raises:
        ImpRAGError: a file cannot be read, no question can be kept, or the folder is taken or
            cannot be written.
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
            drawing = random.Random(f"{seed} counterfactual {id}")
            other = _other_tokens(passage, group, lower, names, drawing)
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
    """The text with other numbers and words; a word in capitals becomes one in capitals.

    Args:
        other: by number, or by word in lower case.
    """

    def one(found: re.Match[str]) -> str:
        token = found[0]
        new = other.get(token.lower(), token)
        return new.upper() if token.isupper() else new

    return _TOKEN.sub(one, text)


def _changed(example: Example, passage: Passage, other: Mapping[str, str]) -> Example | None:
    """The question about the changed passage; None if this has none of its answers."""
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


def _other_tokens(
    passage: Passage,
    group: Sequence[Example],
    lower: set[str],
    names: Sequence[str],
    drawing: random.Random,
) -> dict[str, str]:
    """What stands for the numbers and names in the answers of a passage's questions."""
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
            other[token] = _other_number(token, drawing)
        elif (
            names
            and len(token) >= _SHORTEST_NAME
            and token[0].isupper()
            and token.lower() not in lower
        ):
            other[token.lower()] = drawing.choice(names)
    return other


def _other_number(number: str, drawing: random.Random) -> str:
    """A number of the same form; it begins with a zero only if the old one does."""
    return "".join(
        str(drawing.randint(0 if digit == "0" else 1, 9)) if digit.isdigit() else digit
        for digit in number
    )


def _vocabulary(texts: Iterable[str]) -> tuple[set[str], list[str]]:
    """The words that are in lower case somewhere, and proper nouns that are there twice or more."""
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
    """Make the folder that the command line asks for; print the counts as JSON."""
    parser = argparse.ArgumentParser(
        description="Make questions and passages that state other answers than the true ones."
    )
    parser.add_argument(
        "questions", help="examples whose provenance names passages of the corpus, as JSONL"
    )
    parser.add_argument("--corpus", required=True, help="the passages, as for imprag index")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="draws other digits and names")
    asked = parser.parse_args(arguments)
    try:
        counts = make_counterfactual(asked.questions, asked.corpus, asked.out, asked.seed)
    except ImpRAGError as error:
        parser.error(str(error))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
