"""Training examples of a recipe: prompts, responses, positives and hard negatives."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import (
    Example,
    Hops,
    TaskExamples,
    load_benchmark,
    load_task,
    read_tasks,
    split_of_passages,
)
from imprag.tasks.benchmark import is_benchmark
from imprag.tasks.self_supervised import maker_of
from imprag.training.objectives import make_objective
from imprag.training.recipe import Recipe, TeacherSettings
from imprag.training.sources import Synthetic, SyntheticSource, TaskSource
from imprag.training.teacher import TextRetriever, label_prompts, load_retriever

_PART = 4096  # passages read at once


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A prompt with its response and, if the task retrieves, its retrieval labels.

    Attributes:
        id: id of the task's example.
        prompt: the task's prompt template, filled in; empty for plain text of the corpus.
        response: the text that the model should generate; empty if no answer is known, so that the
            example trains retrieval alone.
        positives: corpus rows of the positives, the most certain first; () without retrieval.
        hard_negatives: corpus rows of the pool that batches sample hard negatives from, the
            hardest first.
        known: corpus rows that may be further positives; they are never negatives.
        group: place in a grid: (entity, relation), or (title,) of an article; () if none.
        answers: a passage that contains one of these texts is never a negative; () where answers
            are labels such as True.
        later: corpus rows of the positives of each later retrieval of the response, in order.
    """

    id: str
    prompt: str
    response: str
    positives: tuple[int, ...] = ()
    hard_negatives: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    group: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    later: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        """What fingerprints are made of; ``later`` is a part of it where there is any."""
        names = [one.name for one in fields(self) if one.name != "later" or self.later]
        return f"TrainingExample({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"


@dataclass(frozen=True)
class TrainingSource:
    """Examples that are sampled together, with one weight in the mixture.

    Attributes:
        name: the source's name in messages.
        examples: the examples, all of the requested split.
        weight: share in the mixture, relative to the other sources.
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


#: Makes the text retriever over a corpus that labels training prompts.
MakeTeacher = Callable[[Corpus], TextRetriever]


def load_sources(
    recipe: Recipe, corpus: Corpus, teacher: MakeTeacher | None = None
) -> list[TrainingSource]:
    """Read the data of a recipe and label it with the teacher's ranks.

    The teacher runs only where its ranks are used: for pseudo-positives or hard negatives.
    Passages about entities that a benchmark of the recipe holds out give no synthetic examples.

    Args:
        recipe: the recipe.
        corpus: its passages.
        teacher: makes the text retriever that labels prompts; by default the recipe's.

    Raises:
        ImpRAGError: data is missing or malformed, a gold passage is not in the corpus, the teacher
            is not installed, or no example has an answer, which a stage of the recipe needs.
    """
    make = teacher or partial(load_retriever, recipe.teacher.retriever)
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
            if retriever is None:
                retriever = make(corpus)
            prompts = [tasks.task.prompt(example) for example in tasks.examples]
            labels = label_prompts(retriever, prompts, recipe.teacher.hard_negatives[1])
        kind: Literal["teacher", "gold"] = "teacher" if source.positives == "teacher" else "gold"
        examples = retrieval_examples(
            tasks, corpus, labels, recipe.teacher, kind, recipe.batch.positives
        )
        if source.positives == "hops":
            examples = bridge_examples(tasks, examples, corpus, recipe.model.separator)
        sources.append(TrainingSource(source.task, examples, source.weight))
    _check_responses(recipe, sources)
    return sources


def _check_responses(recipe: Recipe, sources: Iterable[TrainingSource]) -> None:
    """Refuse stages that learn from responses alone if no example has one."""
    if any(example.response for source in sources for example in source.examples):
        return
    stages = recipe.stages
    before = stages.warmup.fraction + (stages.bottom.fraction if stages.bottom else 0)
    last = make_objective(stages.self_distillation.objective)
    if before < 1 and last.needs_log_likelihood:
        raise ImpRAGError(
            "no example of the recipe has an answer, so self-distillation has nothing to learn "
            "from: set stages.warmup.fraction to 1, or add data with answers"
        )
    if stages.mine_every is not None:
        raise ImpRAGError(
            "no example of the recipe has an answer, so no prompt reads what stages.mine_every "
            "mines: leave it out, or add data with answers"
        )


def read_source(
    source: TaskSource, known: dict[tuple[str, ...], TaskExamples] | None = None
) -> TaskExamples:
    """All examples of a source, without its limit.

    Args:
        source: the location of the examples and their prompt templates.
        known: cache of examples by location, task and split; this call adds to it.

    Raises:
        ImpRAGError: the examples are missing or malformed.
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
    """Training examples of a task with retrieval.

    With ``teacher``, the teacher's ``count`` first ranks are pseudo-positives; the ranks between
    them and the pool of hard negatives are neither positives nor negatives. With ``gold``, all gold
    passages are positives and leave the teacher's pool. In both cases the pool may hold passages
    with an answer; batches never take those as negatives.

    Args:
        tasks: the task and its examples.
        corpus: the passages.
        labels: the teacher's ranks for each prompt as rows of the corpus, (examples, depth), best
            first; not needed for gold positives without hard negatives.
        settings: the ranks that hard negatives are sampled from.
        positives: source of the positives: the teacher or the examples' provenance.
        count: number of pseudo-positives.

    Raises:
        ImpRAGError: an example has no gold passage, or one that is not in the corpus.
    """
    task = tasks.task
    first, last = settings.hard_negatives
    ranked = [[] for _ in tasks.examples] if labels is None else labels.tolist()
    labelled = gold_rows(tasks, corpus) if positives == "gold" else ranked
    examples = []
    for example, ranks, rows in zip(tasks.examples, ranked, labelled, strict=True):
        near: list[int] = []
        if positives == "teacher":
            rows, near = rows[:count], ranks[count : first - 1]
        examples.append(
            TrainingExample(
                id=example.id,
                prompt=task.prompt(example),
                response=task.response(example) if example.answers else "",
                positives=tuple(rows),
                hard_negatives=_without(ranks[first - 1 : last], rows),
                known=tuple(near),
                group=example.group,
                answers=() if task.metric == "accuracy" else tuple(example.answers),
            )
        )
    return _grouped_by_title(examples, corpus)


def bridge_examples(
    tasks: TaskExamples,
    examples: Sequence[TrainingExample],
    corpus: Corpus,
    separator: str,
) -> list[TrainingExample]:
    """Two-hop examples whose response names the bridge first, then the answer.

    The passages of the first hop are the prompt's positives; those of the second hop are the
    positives of the query at the separator, and neither positive nor negative for the prompt.

    Args:
        tasks: the task and its examples; the first reference of an answer's provenance proves the
            bridge, the second one the answer.
        examples: made of them by :func:`retrieval_examples`, in order.
        corpus: the passages.
        separator: stands between bridge and answer, with spaces around it.

    Raises:
        ImpRAGError: an example has no bridge, no answer or no pair of gold passages, or one of the
            texts contains the separator.
    """
    made = []
    for one, example in zip(examples, tasks.examples, strict=True):
        hops = checked_hops(tasks, example, separator)
        first, second = (tuple(corpus.rows(ids)) for ids in (hops.first, hops.second))
        made.append(
            replace(
                one,
                response=f"{hops.named('', separator)}{one.response}",
                positives=first,
                known=(*one.known, *second),
                later=(second,),
            )
        )
    return made


def checked_hops(tasks: TaskExamples, example: Example, separator: str) -> Hops:
    """Both hops of an example that names its bridge first.

    Raises:
        ImpRAGError: as `bridge_examples`.
    """
    hops = example.hops
    answer = example.answers[0] if example.answers else separator
    if hops is None or separator in f"{hops.bridge} {answer}":
        raise ImpRAGError(
            f"{tasks.source}: example '{example.id}' of task '{tasks.task.name}' cannot name its "
            "bridge first: it needs a text meta.bridge_answer in one line, an answer, neither of "
            f"them with {separator!r}, and two passages in each answer's provenance, that of the "
            "bridge first; leave it out, or write positives: gold"
        )
    return hops


def plain_examples(tasks: TaskExamples) -> list[TrainingExample]:
    """Training examples of a task without retrieval."""
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
    """Examples made from passages of the corpus, in an order that the seed decides.

    If their task retrieves, the passage that an example is made from is its positive.

    Args:
        kind: the self-supervised task.
        corpus: the corpus that rows refer to.
        part: makes the examples from this part of the corpus only; by default from all of it.
        limit: largest number of examples; by default there is none.
        seed: decides the order of the passages.
        keep: whether a passage may be used.
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
    """The passages of the rows, read in parts, which is several times faster than one by one."""
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
    """A filter for passages: False for those about an entity of a held-out split.

    Args:
        trained: for each benchmark folder, the splits that are trained on.
    """
    kept = [
        (split_of_passages(load_benchmark(folder)), {None, *splits})
        for folder, splits in trained.items()
    ]
    return lambda passage: all(split_of(passage) in splits for split_of, splits in kept)


def gold_rows(tasks: TaskExamples, corpus: Corpus) -> list[list[int]]:
    """The corpus rows of every example's gold passages.

    Raises:
        ImpRAGError: an example names no gold passage, or one that is not in the corpus.
    """
    if missing := [example.id for example in tasks.examples if not example.gold_ids]:
        raise ImpRAGError(
            f"{tasks.source}: {len(missing)} of {len(tasks.examples)} examples of task "
            f"'{tasks.task.name}' name no gold passage, such as '{missing[0]}'; "
            "leave them out or take positives from the teacher"
        )
    return tasks.gold_rows(corpus)


def _grouped_by_title(examples: Sequence[TrainingExample], corpus: Corpus) -> list[TrainingExample]:
    """The examples, grouped by the title of their first positive where they had no group."""
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
