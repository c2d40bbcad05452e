"""The paper's synthetic tasks, made from the passages of any corpus. They do not retrieve.

Each passage gives at most one example. It depends only on the passage and the seed, not on other
passages or their order.
"""

import random
import re
from collections.abc import Iterable, Iterator

from imprag.corpus.passage import Passage
from imprag.tasks.example import Answer, Example
from imprag.tasks.task import Task, register_task

DENOISING = register_task(
    Task(
        "phrase_denoising",
        "{input} Recover the original phrases marked between [START] and [END] in the given text "
        "A:",
        retrieval=False,
        max_new_tokens=64,
    )
)
SENTENCE = register_task(
    Task(
        "sentence_generation",
        "{input} Generate a sentence corresponding to the relation specified after [SEP] for the "
        "context mentioned before [SEP] A:",
        metric="f1",
        retrieval=False,
        max_new_tokens=64,
    )
)
TEXT = register_task(
    Task("corpus_text", "{input}", metric="f1", retrieval=False, max_new_tokens=256)
)

_MAX_PHRASES = 3
_MAX_PHRASE_WORDS = 4
# A run of words without punctuation, so that a phrase does not cross a clause.
_CLAUSE = re.compile(r"\w[\w'’-]*(?: \w[\w'’-]*)*")
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
# A full stop after these does not end a sentence: initials, titles, a few common abbreviations.
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Mt|Jr|Sr|No|vs|ca?|e\.g|i\.e|U\.S)\.$")


def phrase_denoising(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield texts in which one to three phrases, between [START] and [END], are corrupted.

    A phrase of up to four words is corrupted by shuffling the letters of each word. The answer is
    the original phrases in order, separated by commas. Passages without a phrase to corrupt are
    skipped.
    """
    for passage in passages:
        generator = generator_for(seed, passage, DENOISING)
        phrases = _phrases(passage.text, generator)
        chosen = sorted(
            generator.sample(phrases, min(len(phrases), generator.randint(1, _MAX_PHRASES)))
        )
        originals, pieces, end = [], [], 0
        for start, stop in chosen:
            original = passage.text[start:stop]
            originals.append(original)
            pieces += [passage.text[end:start], f"[START] {_corrupt(original, generator)} [END]"]
            end = stop
        if chosen:
            text = "".join([*pieces, passage.text[end:]])
            yield example_of(DENOISING, passage, text, ", ".join(originals))


def sentence_generation(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield examples that ask for the sentence after, or before, a part of a passage.

    Passages of a single sentence are skipped.
    """
    for passage in passages:
        sentences = split_sentences(passage.text)
        if len(sentences) < 2:
            continue
        generator = generator_for(seed, passage, SENTENCE)
        cut = generator.randrange(1, len(sentences))
        if generator.random() < 0.5:
            context, relation, answer = sentences[:cut], "next sentence", sentences[cut]
        else:
            context, relation, answer = sentences[cut:], "previous sentence", sentences[cut - 1]
        yield example_of(SENTENCE, passage, f"{' '.join(context)} [SEP] {relation}", answer)


def corpus_text(passages: Iterable[Passage]) -> Iterator[Example]:
    """Plain language modelling: the first word of a passage is the input, the rest the answer.

    A prompt cannot be empty, so the first word has no loss.
    """
    for passage in passages:
        first, *rest = passage.text.split(maxsplit=1)
        if rest:
            yield example_of(TEXT, passage, first, rest[0])


def split_sentences(text: str) -> list[str]:
    """The sentences of an English text, found by punctuation and capitals."""
    sentences: list[str] = []
    start = 0
    for gap in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, start, gap.start()):
            sentences.append(text[start : gap.end()].strip())
            start = gap.end()
    return [*sentences, rest] if (rest := text[start:].strip()) else sentences


def example_of(task: Task, passage: Passage, text: str, answer: str) -> Example:
    """An example of a synthetic task whose provenance is the passage."""
    output = [Answer(answer, [{"passage_id": passage.id}])]
    return Example(f"{task.name}-{passage.id}", text, output, task=task.name)


def generator_for(seed: int, passage: Passage, task: Task) -> random.Random:
    """The random generator of a passage and task, independent of other passages."""
    return random.Random(f"{seed} {task.name} {passage.id}")


def _phrases(text: str, generator: random.Random) -> list[tuple[int, int]]:
    """Start and end of one random phrase per clause, if it has a word that can be shuffled."""
    phrases = []
    for clause in _CLAUSE.finditer(text):
        words = [match.span() for match in _WORD.finditer(text, *clause.span())]
        length = generator.randint(1, min(_MAX_PHRASE_WORDS, len(words)))
        first = generator.randrange(len(words) - length + 1)
        start, end = words[first][0], words[first + length - 1][1]
        if any(_can_be_shuffled(word) for word in text[start:end].split(" ")):
            phrases.append((start, end))
    return phrases


def _corrupt(phrase: str, generator: random.Random) -> str:
    """The phrase with the letters of its words shuffled; numbers, which could not be restored,
    are kept."""
    words = phrase.split(" ")
    for index, word in enumerate(words):
        while _can_be_shuffled(word) and words[index] == word:
            words[index] = "".join(generator.sample(word, len(word)))
    return " ".join(words)


def _can_be_shuffled(word: str) -> bool:
    return word.isalpha() and len(set(word)) > 2
