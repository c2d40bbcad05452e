"""Numbers of examples and mean lengths of a recipe's data, for the cost estimate.

Local data is measured; figures are assumed for data that is missing or only on the hub.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imprag.corpus import Corpus, load_corpus
from imprag.corpus.library import BUILT_IN_CORPORA
from imprag.errors import ImpRAGError
from imprag.model.base import EMBEDDED, load_tokenizer
from imprag.tasks import Example, Task, TaskExamples, load_task
from imprag.tasks.self_supervised import maker_of
from imprag.training.data import checked_hops, gold_rows, read_source
from imprag.training.recipe import Recipe
from imprag.training.sources import SyntheticSource, TaskSource

# Assumptions about data that is not local.
TOKENS_PER_WORD = 4 / 3
ASSUMED_PASSAGE_TOKENS = 140  # a hundred words and a title
ASSUMED_EXAMPLES = 5000
_ASSUMED_TOKENS: dict[str, tuple[float, float]] = {  # of prompt and response
    "retrieval": (24, 6),
    "reading": (440, 45),  # about the mean of the paper's eight instruction tuning sets
    "phrase_denoising": (165, 15),
    "sentence_generation": (100, 35),
    "corpus_text": (0, 140),
}
_SAMPLE = 200
_FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".gz")


@dataclass(frozen=True)
class SourceCost:
    """Size of a source of training examples.

    Attributes:
        task, place: the source's task and location.
        state: ``found``, ``on the hub`` (not downloaded), or ``missing``.
        examples: number of examples; the recipe's limit if the source is not found.
        share: mean share of a batch's prompts.
        retrieves: whether its prompts read passages.
        prompt_tokens, response_tokens: mean lengths, measured if the source is found. Without
            response tokens, prompts only retrieve.
        positives: number of positives of each prompt in a batch.
    """

    task: str
    place: str
    state: str
    examples: int
    share: float
    retrieves: bool
    prompt_tokens: float
    response_tokens: float
    positives: int


@dataclass(frozen=True)
class CorpusCost:
    """Size of the corpus.

    Attributes:
        place: name or path.
        state: ``found`` or ``missing``.
        passages: number of passages; None if the corpus is missing.
        passage_tokens: mean length after truncation, measured if the corpus is found.
    """

    place: str
    state: str
    passages: int | None
    passage_tokens: float


def estimate_data(recipe: Recipe) -> tuple[CorpusCost, list[SourceCost]]:
    """Measure the corpus and the sources of a recipe, as far as they are local.

    Raises:
        ImpRAGError: a file exists but cannot be read, or an example lacks the gold passages or the
            bridge that the recipe learns from.
    """
    count = _token_counter(recipe.model.base)
    corpus, corpus_cost = _estimate_corpus(recipe, count)
    known: dict[tuple[str, ...], TaskExamples] = {}
    sources = [
        _estimate_task(source, recipe, share, count, known, corpus)
        if isinstance(source, TaskSource)
        else _estimate_synthetic(source, corpus, share, count)
        for source, share in zip(recipe.data, _shares(recipe), strict=True)
    ]
    return corpus_cost, sources


def _shares(recipe: Recipe) -> list[float]:
    """Each source's mean share of a batch's prompts, by the weights.

    In batches with a grid, sources with retrieval share the grid's prompts and the other sources
    share `batch.others`.
    """
    batch = recipe.batch
    kinds = [batch.grid is None or source.retrieves for source in recipe.data]
    others = batch.others if batch.grid else 0
    room = {True: 1 - others / batch.prompts, False: others / batch.prompts}
    weights = {True: 0.0, False: 0.0}
    for source, kind in zip(recipe.data, kinds, strict=True):
        weights[kind] += source.weight
    return [
        room[kind] * source.weight / weights[kind]
        for source, kind in zip(recipe.data, kinds, strict=True)
    ]


def _token_counter(base: str) -> Callable[[str], float]:
    """A function that counts tokens: with the model's tokenizer if it is local, else by words."""
    try:
        tokenizer = load_tokenizer(base) if base == EMBEDDED or Path(base).exists() else None
    except ImpRAGError:
        tokenizer = None
    if tokenizer is None:
        return lambda text: len(text.split()) * TOKENS_PER_WORD
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _estimate_corpus(
    recipe: Recipe, count: Callable[[str], float]
) -> tuple[Corpus | None, CorpusCost]:
    name, longest = ", ".join(recipe.corpus), recipe.model.max_passage_tokens
    try:
        corpus = load_corpus(recipe.corpus)
    except ImpRAGError:
        paths = [Path(each) for each in recipe.corpus if each not in BUILT_IN_CORPORA]
        if paths and all(path.exists() for path in paths):
            raise
        assumed = min(longest, ASSUMED_PASSAGE_TOKENS)
        return None, CorpusCost(name, "missing", None, assumed)
    passages = (corpus[row] for row in _spread(len(corpus)))
    template = recipe.model.passage_template
    texts = (
        template.replace("{title}", passage.title).replace("{text}", passage.text)
        for passage in passages
    )
    tokens = statistics.fmean(min(longest, count(text)) for text in texts)
    return corpus, CorpusCost(name, "found", len(corpus), tokens)


def _estimate_task(
    source: TaskSource,
    recipe: Recipe,
    share: float,
    count: Callable[[str], float],
    known: dict[tuple[str, ...], TaskExamples],
    corpus: Corpus | None,
) -> SourceCost:
    if Path(source.tasks).exists():
        state = "found"
        tasks = read_source(source, known).draw(source.limit, recipe.seed)
        examples = len(tasks.examples)
        drawn = [tasks.examples[i] for i in _spread(examples)]
        prompt, response = _lengths(tasks.task, drawn, count)
        if source.positives != "teacher" and corpus is not None:
            gold_rows(tasks, corpus)
        if source.positives == "hops" and (separator := recipe.model.separator):
            hops = [checked_hops(tasks, one, separator) for one in tasks.examples]
            named = [count(hops[i].named("", separator)) for i in _spread(examples)]
            response += statistics.fmean(named)
    else:
        # As in `read_records`: a name that looks like a file's is not looked for on the hub.
        is_file = source.tasks.endswith(_FILE_ENDINGS) or source.tasks.startswith((".", "/"))
        state = "missing" if is_file else "on the hub"
        examples = source.limit or ASSUMED_EXAMPLES
        prompt, response = _ASSUMED_TOKENS["retrieval" if source.retrieves else "reading"]
    return SourceCost(
        task=source.task,
        place=source.tasks,
        state=state,
        examples=examples,
        share=share,
        retrieves=source.retrieves,
        prompt_tokens=prompt,
        response_tokens=response,
        positives=recipe.batch.positives if source.positives == "teacher" else 1,
    )


def _estimate_synthetic(
    source: SyntheticSource, corpus: Corpus | None, share: float, count: Callable[[str], float]
) -> SourceCost:
    if corpus is None:
        examples = source.limit or ASSUMED_EXAMPLES
        drawn: list[Example] = []
    else:
        corpus = load_corpus(source.corpus) if source.corpus else corpus
        examples = min(len(corpus), source.limit or len(corpus))
        make = maker_of(source.synthetic)
        drawn = list(make(corpus[i] for i in _spread(len(corpus))))
    if drawn:
        prompt, response = _lengths(load_task(source.synthetic), drawn, count)
    else:
        prompt, response = _ASSUMED_TOKENS.get(source.synthetic, _ASSUMED_TOKENS["retrieval"])
    return SourceCost(
        task=source.synthetic,
        place="the corpus",
        state="missing" if corpus is None else "found",
        examples=examples,
        share=share,
        retrieves=source.retrieves,
        prompt_tokens=prompt,
        response_tokens=response,
        positives=int(source.retrieves),
    )


def _lengths(
    task: Task, examples: Sequence[Example], count: Callable[[str], float]
) -> tuple[float, float]:
    """Mean tokens of prompts and responses; of none where no answer is known."""
    prompts = [count(task.prompt(example)) for example in examples]
    responses = [count(task.response(one)) if one.answers else 0.0 for one in examples]
    return statistics.fmean(prompts), statistics.fmean(responses)


def _spread(length: int) -> list[int]:
    """Evenly spaced numbers below a length, as a sample."""
    return [i * length // min(length, _SAMPLE) for i in range(min(length, _SAMPLE))]
