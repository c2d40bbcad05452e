"""Questions whether an answer is right, made from questions with answers (beyond the paper).

An answer is right half of the time. It prepares for tasks with labels as answers, such as FEVER.

    python examples/default_model/verification.py squad/questions.jsonl \
        --out verification-squad.jsonl
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from question_files import make_file, question_parser

from imprag.tasks import Answer, Example, read_examples

_VERIFICATIONS = (
    ("{question} {answer}. True or false? A:", "True", "False"),
    ("{question} Somebody says {answer}. Is that true? A:", "True", "False"),
    (
        "Say True if the answer is right and False if it is not. {question} {answer} A:",
        "True",
        "False",
    ),
    ("Question: {question} Proposed answer: {answer}. Is it right, yes or no? A:", "yes", "no"),
    ('Is "{answer}" the right answer to "{question}"? A:', "yes", "no"),
)


def verification(examples: Iterable[Example], seed: int = 0) -> Iterator[Example]:
    """Whether an answer to a question is right; else it is one to another question of its kind.

    Questions of a kind are those about the same relation or article.
    """
    examples = list(examples)
    kinds: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        kinds[_kind(example)].append(example)
    for example in examples:
        generator = random.Random(f"{seed} verification {example.id}")
        prompt_template, true, false = generator.choice(_VERIFICATIONS)
        answer, verdict = example.answers[0], true
        if generator.random() < 0.5:
            right = set(example.answers)
            peers = kinds[_kind(example)]
            others = [generator.choice(peers).answers[0] for _ in range(8)]
            others = [other for other in others if other not in right]
            if others:
                answer, verdict = others[0], false
        yield Example(
            f"verification-{example.id}",
            prompt_template.format(question=example.input, answer=answer),
            [Answer(verdict, example.output[0].provenance)],
            example.meta,
            task="verification",
        )


def _kind(example: Example) -> str:
    for name in ("relation", "kind", "title"):
        if isinstance(kind := example.meta.get(name), str):
            return kind
    return example.task


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file that the command line asks for."""
    parser = question_parser(
        "Make questions whether an answer is right from questions with answers.",
        "prompts and wrong answers",
        questions="examples, as JSONL",
    )
    make_file(
        parser,
        arguments,
        lambda asked: verification(read_examples(asked.questions), asked.seed),
    )


if __name__ == "__main__":
    main()
