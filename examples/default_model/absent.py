"""Questions that their passage does not answer, with the answer "not found" (beyond the paper).

Each question keeps its text and gets another passage with its passage's title.

    python examples/default_model/absent.py squad/questions.jsonl --corpus squad/passages.jsonl \
        --out absent-squad.jsonl
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from question_files import add_limit, limited, make_file, question_parser

from imprag.corpus import Corpus, load_corpus
from imprag.tasks import Answer, Example, read_examples

NOT_FOUND = "not found"


def absent(examples: Iterable[Example], corpus: Corpus, seed: int = 0) -> Iterator[Example]:
    """Questions with passages of the same title in which none of their answers stands.

    Questions without such a passage are left out.
    """
    by_title: dict[str, list[int]] = defaultdict(list)
    for row, passage in enumerate(corpus):
        by_title[passage.title].append(row)
    for example in examples:
        generator = random.Random(f"{seed} absent {example.id}")
        gold = corpus.rows(example.gold_ids)
        others = sorted({row for one in gold for row in by_title[corpus[one].title]} - set(gold))
        generator.shuffle(others)
        for row in others:
            passage = corpus[row]
            if not any(answer.lower() in passage.text.lower() for answer in example.answers):
                evidence = [{"passage_id": passage.id}]
                answers = [Answer(NOT_FOUND, evidence)]
                yield Example(
                    f"absent-{example.id}", example.input, answers, example.meta, example.task
                )
                break


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions that their passages do not answer from questions that they do.",
        "questions and passages",
        questions="examples with gold passages, as JSONL",
    )
    parser.add_argument("--corpus", required=True, help="their passages, as for imprag index")
    add_limit(parser)
    make_file(parser, arguments, made)


def made(asked: argparse.Namespace) -> Iterator[Example]:
    """The questions that the command line asks for."""
    examples = limited(list(read_examples(asked.questions)), asked)
    return absent(examples, load_corpus(asked.corpus), asked.seed)


if __name__ == "__main__":
    main()
