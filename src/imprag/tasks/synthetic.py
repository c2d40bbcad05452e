"""The paper's synthetic tasks, made from the passages of any corpus; nothing is retrieved for them.

Each passage gives at most one example, drawn by the seed and the passage's id alone: the same
whatever the order of the passages and whichever others there are.
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
# Words that stand side by side without punctuation, so that a phrase does not cross a clause.
_CLAUSE = re.compile(r"\w[\w'’-]*(?: \w[\w'’-]*)*")
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
# A full stop behind these does not end a sentence: initials, titles, a few common abbreviations.
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Mt|Jr|Sr|No|vs|ca?|e\.g|i\.e|U\.S)\.$")


def phrase_denoising(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Examples of texts in which one to three phrases, between [START] and [END], are corrupted.

    A phrase of up to four words is corrupted by mixing the letters inside its words. The answer is
    the original phrases in order, with commas between. Passages without a phrase to corrupt are
    passed over.
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
    """Examples that ask for the sentence after, or before, a part of a passage.

    Passages of a single sentence are passed over.
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

    A prompt cannot be empty, and only the first word's loss is given up for that.
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
    output = [Answer(answer, [{"passage_id": passage.id}])]
    return Example(f"{task.name}-{passage.id}", text, output, task=task.name)


def generator_for(seed: int, passage: Passage, task: Task) -> random.Random:
    return random.Random(f"{seed} {task.name} {passage.id}")


def _phrases(text: str, generator: random.Random) -> list[tuple[int, int]]:
    """Start and end of a phrase from every clause where the draw hits a word that can be mixed."""
    phrases = []
    for clause in _CLAUSE.finditer(text):
        words = [match.span() for match in _WORD.finditer(text, *clause.span())]
        length = generator.randint(1, min(_MAX_PHRASE_WORDS, len(words)))
        first = generator.randrange(len(words) - length + 1)
        start, end = words[first][0], words[first + length - 1][1]
        if any(_mixable(word) for word in text[start:end].split(" ")):
            phrases.append((start, end))
    return phrases


def _corrupt(phrase: str, generator: random.Random) -> str:
    """The phrase with the letters of its words in another order; numbers stay, for nobody could
    guess them back."""
    words = phrase.split(" ")
    for index, word in enumerate(words):
        while _mixable(word) and words[index] == word:
            words[index] = "".join(generator.sample(word, len(word)))
    return " ".join(words)


def _mixable(word: str) -> bool:
    return word.isalpha() and len(set(word)) > 2
