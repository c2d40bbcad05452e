"""From a recipe's data to training examples: prompt, response, right and wrong passages."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import TaskExamples, load_benchmark, load_task, read_tasks, split_of_passages
from imprag.tasks.benchmark import is_benchmark
from imprag.tasks.self_supervised import maker_of
from imprag.training.recipe import Recipe, TeacherSettings
from imprag.training.sources import Synthetic, SyntheticSource, TaskSource
from imprag.training.teacher import TextRetriever, label_prompts, load_retriever

_PART = 4096  # passages read at once


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A prompt with its response and, where passages are retrieved for it, its labels.

    Attributes:
        id: of the example that it is made from.
        prompt: the task's template, filled in. Empty for plain text of the corpus.
        response: what the model should add to the prompt.
        positives: corpus rows of right passages, the surest first; none without retrieval.
        hard_negatives: corpus rows that look right and are not, the hardest first: the pool that
            batches draw from.
        known: further corpus rows that may be right, and so are negatives nowhere.
        group: its place in a grid: (entity, relation), or (title,) of an article; () if it has
            none.
        answers: texts that mark a passage as a possible match; none where answers are labels.
    """

    id: str
    prompt: str
    response: str
    positives: tuple[int, ...] = ()
    hard_negatives: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    group: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingSource:
    """Examples that are drawn together, with one weight in the mixture.

    Attributes:
        name: for messages.
        examples: none is in another split than the one asked for.
        weight: relative to the other sources.
    """

    name: str
    examples: Sequence[TrainingExample]
    weight: float = 1.0

    def fingerprint(self) -> str:
        """SHA-256 of all examples with their labels, in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr(example).encode(errors="surrogatepass"))
        return digest.hexdigest()


def load_sources(recipe: Recipe, corpus: Corpus) -> list[TrainingSource]:
    """Read the data of a recipe and have the teacher label it.

    The teacher is asked only where its ranks are used: for pseudo-positives or for hard negatives.
    Synthetic examples are not made from passages about the entities that a benchmark of the recipe
    holds out.

    Raises:
        ImpRAGError: data are missing or not in their format, a gold passage is not in the corpus,
            or the teacher is not installed.
    """
    retriever: TextRetriever | None = None
    sources: list[TrainingSource] = []
    known: dict[tuple[str, ...], TaskExamples] = {}
    trained: dict[str, set[str]] = defaultdict(set)
    for source in recipe.data:
        if isinstance(source, TaskSource) and is_benchmark(source.tasks):
            trained[source.tasks].add(source.split)
    keep = not_held_out(trained)
    for source in recipe.data:
        if isinstance(source, SyntheticSource):
            sources.append(_synthetic_source(source, corpus, recipe.seed, keep))
            continue
        tasks = read_source(source, known).draw(source.limit, recipe.seed)
        if not source.retrieves:
            sources.append(TrainingSource(source.task, plain_examples(tasks), source.weight))
            continue
        labels = None
        if source.positives == "teacher" or recipe.batch.hard_negatives:
            retriever = retriever or load_retriever(recipe.teacher.retriever, corpus)
            prompts = [tasks.task.prompt(example) for example in tasks.examples]
            labels = label_prompts(retriever, prompts, recipe.teacher.hard_negatives[1])
        examples = retrieval_examples(
            tasks, corpus, labels, recipe.teacher, source.positives, recipe.batch.positives
        )
        sources.append(TrainingSource(source.task, examples, source.weight))
    return sources


def read_source(
    source: TaskSource, known: dict[tuple[str, ...], TaskExamples] | None = None
) -> TaskExamples:
    """All examples of a source, without its limit.

    Args:
        source: where they are, and how they are asked.
        known: examples that sources have read before; what this one reads is added.

    Raises:
        ImpRAGError: they are missing or not in their format.
    """
    known = {} if known is None else known
    place = (source.tasks, source.task, source.split)
    if place not in known:
        if is_benchmark(source.tasks):
            (known[place],) = read_tasks([source.task], data=source.tasks, split=source.split)
        else:
            (known[place],) = read_tasks([f"{source.task}={source.tasks}"], split=source.split)
    found = known[place]
    return replace(found, task=replace(found.task, prompt_templates=source.prompt_templates))


def retrieval_examples(
    tasks: TaskExamples,
    corpus: Corpus,
    labels: npt.NDArray[np.int32] | None,
    settings: TeacherSettings,
    positives: Literal["teacher", "gold"] = "teacher",
    count: int = 5,
) -> list[TrainingExample]:
    """Examples of a task that passages are retrieved for.

    With ``teacher``, the ``count`` first ranks are pseudo-positives, and the ranks between them and
    the pool of hard negatives count neither as right nor as wrong. With ``gold``, all gold passages
    are positives, and the teacher's pool is taken without them. In both cases the pool may hold
    passages with an answer; batches never take those as negatives.

    Args:
        labels: the teacher's ranks for every prompt, rows of the corpus, (examples, depth), best
            first; not needed for gold positives without hard negatives.
        settings: which ranks hard negatives are drawn from.
        positives: from the teacher or from the examples' provenance.
        count: pseudo-positives of the teacher.

    Raises:
        ImpRAGError: an example has no gold passage or one that is not in the corpus.
    """
    task = tasks.task
    first, last = settings.hard_negatives
    ranked = [[] for _ in tasks.examples] if labels is None else labels.tolist()
    right = _gold_rows(tasks, corpus) if positives == "gold" else ranked
    examples = []
    for example, ranks, rows in zip(tasks.examples, ranked, right, strict=True):
        near: list[int] = []
        if positives == "teacher":
            rows, near = rows[:count], ranks[count : first - 1]
        examples.append(
            TrainingExample(
                id=example.id,
                prompt=task.prompt(example),
                response=task.response(example),
                positives=tuple(rows),
                hard_negatives=_without(ranks[first - 1 : last], rows),
                known=tuple(near),
                group=example.group,
                answers=() if task.metric == "accuracy" else tuple(example.answers),
            )
        )
    return _grouped_by_title(examples, corpus)


def plain_examples(tasks: TaskExamples) -> list[TrainingExample]:
    """Examples of a task that nothing is retrieved for."""
    task = tasks.task
    return [
        TrainingExample(example.id, task.prompt(example), task.response(example))
        for example in tasks.examples
    ]


def synthetic_examples(
    kind: Synthetic,
    corpus: Corpus,
    *,
    part: Corpus | None = None,
    limit: int | None = None,
    seed: int = 0,
    keep: Callable[[Passage], bool] = lambda passage: True,
) -> list[TrainingExample]:
    """Examples made from passages that are drawn from the corpus by the seed.

    Those that retrieve have the passage that they are made from as their positive.

    Args:
        part: of the corpus, that the passages are drawn from; if not given, all of it.
        limit: at most so many.
        keep: says which passages may be used.
    """
    task = load_task(kind)
    part = corpus if part is None else part
    rows = random.Random(f"{seed} {kind}").sample(range(len(part)), len(part))
    passages = filter(keep, _read(part, rows))
    if kind == "corpus_text":
        whole = (TrainingExample(f"{kind}-{one.id}", "", one.text) for one in passages)
        return list(islice(whole, limit))
    made = list(islice(maker_of(kind)(passages, seed), limit))
    if not made:
        return []
    tasks = TaskExamples(task, made, str(corpus.path))
    if not task.retrieval:
        return plain_examples(tasks)
    return retrieval_examples(tasks, corpus, None, TeacherSettings(), "gold")


def _read(corpus: Corpus, rows: Sequence[int]) -> Iterator[Passage]:
    """The passages of the rows, read in parts: one by one takes several times as long."""
    for start in range(0, len(rows), _PART):
        yield from corpus.passages(rows[start : start + _PART])


def _synthetic_source(
    source: SyntheticSource, corpus: Corpus, seed: int, keep: Callable[[Passage], bool]
) -> TrainingSource:
    part = load_corpus(source.corpus) if source.corpus else corpus
    examples = synthetic_examples(
        source.synthetic, corpus, part=part, limit=source.limit, seed=seed, keep=keep
    )
    if not examples:
        raise ImpRAGError(f"no passage of {part.path} gives an example of {source.synthetic}")
    return TrainingSource(source.synthetic, examples, source.weight)


def not_held_out(trained: Mapping[str, Set[str]]) -> Callable[[Passage], bool]:
    """Whether a passage is about no subject of a benchmark's splits that are not trained on.

    Args:
        trained: the splits that are, by the benchmark's folder.
    """
    kept = [
        (split_of_passages(load_benchmark(folder)), {None, *splits})
        for folder, splits in trained.items()
    ]
    return lambda passage: all(split_of(passage) in splits for split_of, splits in kept)


def _gold_rows(tasks: TaskExamples, corpus: Corpus) -> list[list[int]]:
    """The corpus rows of every example's gold passages."""
    gold = [example.gold_ids for example in tasks.examples]
    if missing := [one.id for one, ids in zip(tasks.examples, gold, strict=True) if not ids]:
        raise ImpRAGError(
            f"{tasks.source}: {len(missing)} of {len(gold)} examples of task '{tasks.task.name}' "
            f"name no gold passage, such as '{missing[0]}'; leave them out or take positives from "
            "the teacher"
        )
    distinct = list(dict.fromkeys(passage_id for ids in gold for passage_id in ids))
    row_of = dict(zip(distinct, corpus.rows(distinct), strict=True))
    return [[row_of[passage_id] for passage_id in ids] for ids in gold]


def _grouped_by_title(examples: Sequence[TrainingExample], corpus: Corpus) -> list[TrainingExample]:
    """The examples; those without a group get the title of their first positive's article."""
    rows = list({one.positives[0] for one in examples if not one.group})
    titles = dict(zip(rows, (passage.title for passage in corpus.passages(rows)), strict=True))
    return [
        example
        if example.group or not titles[example.positives[0]]
        else replace(example, group=(titles[example.positives[0]],))
        for example in examples
    ]


def _without(rows: Iterable[int], *others: Sequence[int]) -> tuple[int, ...]:
    left_out = {row for group in others for row in group}
    return tuple(row for row in rows if row not in left_out)
