"""Batches: pure functions of seed and step, right masks, grids, epochs, weights, shards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.training.data import TrainingExample, TrainingSource
from imprag.training.recipe import BatchSettings
from imprag.training.samplers.batch_sampler import BatchIndices, BatchSampler

ROWS = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Row n holds the words ``t{n}`` and ``f{n % 5}``."""
    passages = [Passage(f"p{n}", f"title {n}", f"text t{n} f{n % 5}") for n in range(ROWS)]
    return Corpus.build(passages, tmp_path_factory.mktemp("batching") / "corpus")


def question(id: str, positives: Sequence[int], **fields: Any) -> TrainingExample:
    return TrainingExample(id, f"{id}?", f" {id}", tuple(positives), **fields)


def facts(entities: int, relations: int, prompt_templates: int = 1) -> TrainingSource:
    """A question for every cell but those of the diagonal; two cells share a passage."""
    examples = [
        question(
            f"{entity} {relation} {prompt_template}",
            [(entity * relations + relation) // 2 % ROWS],
            group=(f"entity {entity}", f"relation {relation}"),
        )
        for entity in range(entities)
        for relation in range(relations)
        for prompt_template in range(prompt_templates)
        if entity != relation
    ]
    return TrainingSource("facts", examples)


def reading(count: int, weight: float = 1.0) -> TrainingSource:
    examples = [question(f"reading {n}", []) for n in range(count)]
    return TrainingSource("reading", examples, weight)


def assert_equal(one: BatchIndices, other: BatchIndices) -> None:
    for name in BatchIndices.__dataclass_fields__:
        np.testing.assert_equal(getattr(one, name), getattr(other, name))


row_lists = st.lists(st.integers(0, ROWS - 1), max_size=6, unique=True)


@st.composite
def mixtures(draw: st.DrawFn) -> list[TrainingSource]:
    """One to three sources with labels of every kind."""
    sources = []
    for number in range(draw(st.integers(1, 3))):
        examples = []
        for n in range(draw(st.integers(1, 6))):
            positives, pool, known = draw(row_lists), draw(row_lists), draw(row_lists)
            examples.append(
                question(
                    f"{number} {n}",
                    positives,
                    hard_negatives=tuple(row for row in pool if row not in {*positives, *known}),
                    known=tuple(known),
                    answers=draw(st.sampled_from([(), ("f3",), ("t7", "f1")])),
                )
            )
        weight = draw(st.sampled_from([0.2, 1.0, 3.0]))
        sources.append(TrainingSource(f"source {number}", examples, weight))
    return sources


batch_settings = st.builds(
    BatchSettings,
    examples=st.integers(3, 6),
    positives=st.integers(1, 3),
    hard_negatives=st.integers(0, 4),
    candidates=st.integers(1, 5),
    generate=st.none() | st.integers(0, 3),
    questions_per_passage=st.integers(0, 2),
)


@settings(max_examples=80)
@given(mixtures(), batch_settings, st.integers(0, 3), st.integers(0, 2000))
def test_batches_satisfy_their_invariants(
    corpus: Corpus, sources: list[TrainingSource], given: BatchSettings, seed: int, step: int
) -> None:
    sampler = BatchSampler(sources, given, corpus, seed)
    batch = sampler(step)
    assert_equal(batch, BatchSampler(sources, given, corpus, seed)(step))
    assert sampler.examples == [one for source in sources for one in source.examples]
    size = len(batch.examples)
    assert len(batch.generated) == len(batch.candidates) == size
    assert len(set(batch.passages)) == len(batch.passages)
    assert batch.positive.shape == batch.negative.shape == (size, len(batch.passages))
    alone = BatchSampler(
        sources, given.model_copy(update={"questions_per_passage": 0}), corpus, seed
    )
    own = alone(step).examples
    assert batch.examples[: len(own)] == own
    retrieving = extra = 0
    for n, index in enumerate(batch.examples):
        example = sampler.examples[index]
        right, known = set(example.positives), set(example.known)
        for column, row in enumerate(batch.passages):
            answered = set(corpus[row].text.split()) & set(example.answers)
            wrong = bool(right) and row not in right | known and not answered
            assert batch.positive[n, column] == (row in right)
            assert batch.negative[n, column] == wrong
        read = [batch.passages[column] for column in batch.candidates[n]]
        if not right:
            assert batch.generated[n]
            assert read == []
            continue
        if n < given.examples:
            retrieving += batch.generated[n]
            assert batch.positive[n].sum() >= min(given.positives, len(right))
        else:
            extra += 1
            assert batch.generated[n]
        if n >= len(own):  # it reads what another reads
            assert right <= set(read)
            assert batch.candidates[n] in batch.candidates[: len(own)]
            continue
        answers = set(example.answers)
        allowed = [
            row
            for row in example.hard_negatives
            if row not in known and not answers & set(corpus[row].text.split())
        ]
        drawn = len(set(allowed) & set(batch.passages))
        assert drawn >= min(given.hard_negatives, len(allowed))
        if batch.generated[n]:
            assert len(set(read)) == len(read) == given.candidates
            assert 1 <= len(right & set(read)) <= (given.candidates + 1) // 2
        else:
            assert read == []
    drawn_examples = [sampler.examples[index] for index in batch.examples[: given.examples]]
    assert len(drawn_examples) == given.examples == size - extra
    assert extra <= given.questions_per_passage * given.candidates * retrieving
    with_positives = sum(bool(example.positives) for example in drawn_examples)
    if given.generate is None:
        assert retrieving == with_positives
    else:
        assert retrieving == min(given.generate, with_positives)


def test_batches_are_a_function_of_seed_and_step(corpus: Corpus) -> None:
    sources = [facts(5, 5), reading(9)]
    given = BatchSettings(hard_negatives=0)
    sampler = BatchSampler(sources, given, corpus, 1)
    batches = [sampler(step) for step in range(30)]
    # In any order, and from the middle.
    other = BatchSampler(sources, given, corpus, 1)
    for step in (29, 3, 17, 0, 28):
        assert_equal(other(step), batches[step])
    assert len({batch.examples for batch in batches}) > 25
    assert BatchSampler(sources, given, corpus, 2)(0).examples != batches[0].examples


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_example_once(
    corpus: Corpus, size: int, batch_size: int, seed: int
) -> None:
    given = BatchSettings(examples=batch_size, generate=0)
    sampler = BatchSampler([reading(size)], given, corpus, seed)
    drawn = [index for step in range(3 * size) for index in sampler(step).examples]
    epochs = [drawn[start : start + size] for start in range(0, 3 * size, size)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    if size > 9:
        assert epochs[0] != epochs[1]


def test_each_source_has_its_own_epochs(corpus: Corpus) -> None:
    sampler = BatchSampler([reading(30), reading(30, 2.0)], BatchSettings(examples=10), corpus)
    drawn = [index for step in range(250) for index in sampler(step).examples]
    for first in (0, 30):
        own = [index for index in drawn if first <= index < first + 30]
        for start in range(0, len(own) - 30, 30):
            assert sorted(own[start : start + 30]) == list(range(first, first + 30))


def test_sources_are_sampled_by_their_weights(corpus: Corpus) -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 0.05}
    sources = [replace(reading(50), name=name, weight=w) for name, w in weights.items()]
    sampler = BatchSampler(sources, BatchSettings(examples=10), corpus)
    drawn = Counter(index // 50 for step in range(1000) for index in sampler(step).examples)
    for number, weight in enumerate(weights.values()):
        assert drawn[number] / 10_000 == pytest.approx(weight / 4.05, abs=0.002)
    # Not only in the long run: no source keeps away for long.
    early = Counter(index // 50 for step in range(20) for index in sampler(step).examples)
    assert 25 <= early[0] <= 75
    rare = [reading(5, 1e-9), reading(5)]
    sampler = BatchSampler(rare, BatchSettings(examples=100), corpus)
    assert any(index < 5 for step in range(11) for index in sampler(step).examples)


# --- Grids --------------------------------------------------------------------------------------


def grid_sampler(corpus: Corpus, sources: list[TrainingSource], **fields: Any) -> BatchSampler:
    fields = {"grid": (6, 6), "hard_negatives": 0, "candidates": 1, **fields}
    return BatchSampler(sources, BatchSettings(**fields), corpus)


def test_neighbours_in_a_grid_are_generated(corpus: Corpus) -> None:
    sampler = grid_sampler(corpus, [facts(12, 3)], grid=(4, 3), generate=3, candidates=3)
    firsts = set()
    for step in range(20):
        batch = sampler(step)
        answered = [n for n, generated in enumerate(batch.generated) if generated]
        firsts.add(answered[0])
        assert answered == list(range(answered[0], answered[0] + 3))
        entities = {sampler.examples[batch.examples[n]].group[0] for n in answered}
        assert len(entities) <= 2
    assert len(firsts) > 3


def test_prompts_without_a_response_only_retrieve(corpus: Corpus) -> None:
    examples = [
        replace(question(f"{n}", [n // 2]), response=f" {n}" if n % 2 else "") for n in range(20)
    ]
    given = BatchSettings(
        examples=8, generate=2, questions_per_passage=1, hard_negatives=0, candidates=2
    )
    sampler = BatchSampler([TrainingSource("a", examples)], given, corpus)
    for step in range(10):
        batch = sampler(step)
        answered = [bool(sampler.examples[number].response) for number in batch.examples]
        assert sum(batch.generated[:8]) == min(2, sum(answered[:8]))
        for number, able in enumerate(answered):
            assert able or not (batch.generated[number] or batch.candidates[number])
            assert batch.positive[number].any()


def test_extra_questions_come_from_the_same_source(corpus: Corpus) -> None:
    sources = [
        TrainingSource(name, [question(f"{name} {n}", [n // 3]) for n in range(30)])
        for name in ("a", "b")
    ]
    given = BatchSettings(
        examples=4, generate=1, questions_per_passage=5, hard_negatives=0, candidates=1
    )
    sampler = BatchSampler(sources, given, corpus)
    for step in range(30):
        batch = sampler(step)
        answered = [sampler.examples[batch.examples[n]].id for n in range(4) if batch.generated[n]]
        extra = [sampler.examples[index] for index in batch.examples[4:]]
        assert {example.id[0] for example in extra} <= {answered[0][0]}
        drawn = {sampler.examples[index].id for index in batch.examples[:4]}
        (row,) = {e.positives[0] for e in sampler.examples if e.id == answered[0]}
        same = {
            e.id for e in sampler.examples if e.positives == (row,) and e.id[0] == answered[0][0]
        }
        assert {example.id for example in extra} == same - drawn


def epoch_of(sampler: BatchSampler, cells: int, first: int = 0) -> list[BatchIndices]:
    """The batches from a step on until they have so many prompts."""
    batches: list[BatchIndices] = []
    while sum(len(batch.examples) for batch in batches) < cells:
        batches.append(sampler(first + len(batches)))
    return batches


def test_grids_cross_entities_and_relations(corpus: Corpus) -> None:
    sampler = grid_sampler(corpus, [facts(12, 8)], grid=(4, 4))
    batches = epoch_of(sampler, 12 * 8 - 8)
    assert len(batches) == 6  # three groups of entities, two of relations
    for batch in batches:
        model = [sampler.examples[index].group for index in batch.examples]
        entities, relations = {e for e, _ in model}, {r for _, r in model}
        assert len(entities) == len(relations) == 4
        diagonal = {(f"entity {n}", f"relation {n}") for n in range(8)}
        assert set(model) == {(e, r) for e in entities for r in relations} - diagonal
        # Every cell's passage is there, and right for all cells that share it.
        for n, index in enumerate(batch.examples):
            (row,) = sampler.examples[index].positives
            column = batch.passages.index(row)
            assert batch.positive[n].tolist() == [c == column for c in range(len(batch.passages))]
            assert (batch.negative[n] == ~batch.positive[n]).all()
    assert any(len(batch.passages) < len(batch.examples) for batch in batches)


def test_several_grids_make_a_batch(corpus: Corpus) -> None:
    sources = [replace(facts(12, 3), name="a"), replace(facts(12, 4), name="b", weight=3.0)]
    one = grid_sampler(corpus, sources, grid=(4, 2))
    three = grid_sampler(corpus, sources, grid=(4, 2), grids=3)
    for step in range(20):  # those that would have been batches of their own
        grids = [one(3 * step + n).examples for n in range(3)]
        assert three(step).examples == tuple(index for grid in grids for index in grid)
    assert BatchSettings(grid=(4, 2), grids=3, others=5).prompts == 29


@settings(max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_each_cell_comes_once_per_epoch_and_prompt_templates_alternate(
    corpus: Corpus,
    entities: int,
    relations: int,
    prompt_templates: int,
    rows: int,
    columns: int,
) -> None:
    source = facts(entities, relations, prompt_templates)
    given = BatchSettings(grid=(rows, columns), hard_negatives=0, candidates=1)
    sampler = BatchSampler([source], given, corpus)
    cells = {example.group for example in source.examples}
    seen: list[int] = []
    step = 0
    for _ in range(prompt_templates):
        batches = epoch_of(sampler, len(cells), step)
        step += len(batches)
        drawn = [index for batch in batches for index in batch.examples]
        assert sorted(sampler.examples[index].group for index in drawn) == sorted(cells)
        assert all(len(batch.examples) <= rows * columns for batch in batches)
        seen += drawn
    assert sorted(seen) == list(range(len(source.examples)))


def test_grids_of_articles_have_several_questions_per_article(corpus: Corpus) -> None:
    examples = [
        question(f"{article} {n}", [(7 * article + n) % ROWS], group=(f"article {article}",))
        for article in range(9)
        for n in range(8)
    ]
    sampler = grid_sampler(corpus, [TrainingSource("articles", examples)], grid=(3, 4))
    batches = epoch_of(sampler, len(examples))
    assert sorted(i for batch in batches for i in batch.examples) == list(range(len(examples)))
    assert len(batches) == 6
    for batch in batches:
        counts = Counter(sampler.examples[index].group for index in batch.examples)
        assert set(counts.values()) <= {4, 8}
        assert sum(counts.values()) == 12


def test_small_grids_share_a_batch(corpus: Corpus) -> None:
    examples = [
        question(f"{n}", [n % ROWS], group=(f"entity {n}", f"relation {n}")) for n in range(24)
    ]
    sampler = grid_sampler(corpus, [TrainingSource("sparse", examples)], grid=(2, 3))
    batches = epoch_of(sampler, 24)
    assert [len(batch.examples) for batch in batches] == [6] * 4


def test_batches_hold_grids_and_prompts_of_other_sources(corpus: Corpus) -> None:
    sources = [facts(4, 4), reading(10), replace(facts(4, 4), weight=3.0), reading(10, 3.0)]
    sampler = grid_sampler(corpus, sources, grid=(2, 2), others=5)
    drawn = [Counter() for _ in range(2)]
    for step in range(200):
        batch = sampler(step)
        *cells, a, b, c, d, e = [sampler.examples[index] for index in batch.examples]
        assert all(cell.positives for cell in cells)
        assert not any(one.positives for one in (a, b, c, d, e))
        first = batch.examples[0]
        drawn[0][first >= 22] += 1  # the facts of the third source
        drawn[1].update(index >= 34 for index in batch.examples[-5:])
        assert all((index >= 22) == (first >= 22) for index in batch.examples[: len(cells)])
    assert drawn[0][True] / 200 == pytest.approx(0.75, abs=0.1)
    assert drawn[1][True] / 1000 == pytest.approx(0.75, abs=0.001)


# --- Candidates ---------------------------------------------------------------------------------


def test_two_hop_questions_read_both_passages(corpus: Corpus) -> None:
    source = TrainingSource("two hops", [question(f"{n}", [n, n + 20]) for n in range(8)])
    sampler = BatchSampler(
        [source], BatchSettings(examples=4, candidates=3, hard_negatives=0), corpus
    )
    orders = set()
    for step in range(20):
        batch = sampler(step)
        for n, index in enumerate(batch.examples):
            read = [batch.passages[column] for column in batch.candidates[n]]
            assert set(sampler.examples[index].positives) < set(read)
            orders.add(tuple(batch.positive[n][list(batch.candidates[n])]))
    assert len(orders) == 3  # shuffled


def test_candidates_are_found_even_in_a_small_corpus(tmp_path: Path) -> None:
    corpus = Corpus.build([Passage(f"p{n}", "", "text") for n in range(4)], tmp_path / "corpus")
    source = TrainingSource("one", [question("q", [0, 1, 2])])
    given = BatchSettings(examples=1, positives=1, candidates=4)
    batch = BatchSampler([source], given, corpus)(0)
    assert {batch.passages[column] for column in batch.candidates[0]} == {0, 1, 2, 3}
    with pytest.raises(ImpRAGError, match="reads 5 candidates, but the corpus has only 4 passages"):
        BatchSampler([source], given.model_copy(update={"candidates": 5}), corpus)


# --- Shards -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(mixtures(), batch_settings, st.integers(0, 500), st.integers(1, 5))
def test_shards_partition_the_batch(
    corpus: Corpus, sources: list[TrainingSource], given: BatchSettings, step: int, size: int
) -> None:
    batch = BatchSampler(sources, given.model_copy(update={"cross_batch_memory": 2}), corpus)(step)
    shards = [batch.shard(rank, size) for rank in range(size)]
    columns = [row for shard in shards for row in shard.passages]

    def prompts(part: BatchIndices, rows: Sequence[int]) -> list[tuple[Any, ...]]:
        """All that is said of every prompt, by corpus rows."""
        return [
            (
                part.examples[n],
                part.generated[n],
                [part.passages[column] for column in part.candidates[n]],
                sorted(row for c, row in enumerate(rows) if part.positive[n, c]),
                sorted(row for c, row in enumerate(rows) if part.negative[n, c]),
                part.cross_batch_negative[n].tolist(),
            )
            for n in range(len(part.examples))
        ]

    parts = [prompt for shard in shards for prompt in prompts(shard, columns)]
    assert sorted(parts, key=repr) == sorted(prompts(batch, batch.passages), key=repr)
    assert set(columns) == set(batch.passages)
    start = 0
    for shard in shards:
        assert shard.first_column == start
        assert list(shard.columns) == columns
        assert shard.cross_batch_memory == batch.cross_batch_memory
        assert len(set(shard.passages)) == len(shard.passages)
        start += len(shard.passages)
    sizes = [len(shard.examples) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    generated = [sum(shard.generated) for shard in shards]
    assert max(generated) - min(generated) <= 1


def test_the_shard_of_a_single_process_is_the_batch(corpus: Corpus) -> None:
    batch = grid_sampler(corpus, [facts(4, 4)], grid=(3, 3), candidates=3)(0)
    shard = batch.shard(0, 1)
    assert shard.examples == batch.examples
    assert sorted(shard.passages) == sorted(batch.passages)


# --- Cross-batch memory and mining --------------------------------------------------------------


@settings(max_examples=40)
@given(mixtures(), st.integers(1, 4), st.integers(0, 30))
def test_passages_of_earlier_batches_are_negatives(
    corpus: Corpus, sources: list[TrainingSource], memory: int, step: int
) -> None:
    sampler = BatchSampler(sources, BatchSettings(cross_batch_memory=memory, candidates=1), corpus)
    batch = sampler(step)
    earlier = {row for n in range(max(0, step - memory), step) for row in sampler(n).passages}
    assert len(set(batch.cross_batch_memory)) == len(batch.cross_batch_memory)
    assert set(batch.cross_batch_memory) == earlier - set(batch.passages)
    for n, index in enumerate(batch.examples):
        example = sampler.examples[index]
        for column, row in enumerate(batch.cross_batch_memory):
            answered = set(corpus[row].text.split()) & set(example.answers)
            wrong = row not in {*example.positives, *example.known} and not answered
            assert batch.cross_batch_negative[n, column] == (bool(example.positives) and wrong)


def test_mined_ranks_replace_the_teachers_candidates(corpus: Corpus) -> None:
    sampler = BatchSampler(
        [facts(4, 4)], BatchSettings(examples=4, candidates=3, hard_negatives=2), corpus
    )
    numbers = sampler.reading([5])
    ranks = np.array([[30, *sampler.examples[number].positives, 31, 32] for number in numbers])
    batch = sampler.reranked(numbers, ranks)(5)
    assert batch.examples == sampler(5).examples
    for read in batch.candidates:
        rows = {batch.passages[column] for column in read}
        assert {30, 31} < rows  # the first ranks, next to the positive
    assert sampler(5).passages != batch.passages


@settings(max_examples=40)
@given(mixtures(), batch_settings, st.integers(0, 2), st.integers(0, 30), st.integers(1, 3))
def test_only_prompts_that_read_candidates_are_mined(
    corpus: Corpus,
    sources: list[TrainingSource],
    given: BatchSettings,
    memory: int,
    first: int,
    count: int,
) -> None:
    sampler = BatchSampler(sources, given.model_copy(update={"cross_batch_memory": memory}), corpus)
    steps = range(first, first + count)
    numbers = sampler.reading(steps)
    ranks = np.array([[(number + n) % ROWS for n in range(9)] for number in numbers], np.int64)
    reranked = sampler.reranked(numbers, ranks.reshape(-1, 9))
    read = set()
    for step in range(max(0, first - memory), first + count):
        batch = reranked(step) if step in steps else reranked._batch(step)
        own = [n for n, rows in enumerate(batch.candidates) if rows]
        read |= {batch.examples[n] for n in own if batch.examples[n] in numbers}
    assert read == set(numbers)


def test_extra_questions_are_about_candidates_of_other_prompts(corpus: Corpus) -> None:
    sources = [facts(12, 8, prompt_templates=2), reading(5)]
    given = BatchSettings(examples=2, candidates=4, hard_negatives=0)
    alone = BatchSampler(sources, given, corpus)
    sampler = BatchSampler(sources, given.model_copy(update={"questions_per_passage": 1}), corpus)
    added = 0
    for step in range(40):
        first, batch = alone(step), sampler(step)
        drawn = len(first.examples)
        assert batch.examples[:drawn] == first.examples
        assert batch.candidates[:drawn] == first.candidates
        assert batch.passages == first.passages  # they cost no passage
        model = [e.group for e in (sampler.examples[i] for i in batch.examples) if e.positives]
        assert len(set(model)) == len(model)
        for n in range(drawn, len(batch.examples)):
            example = sampler.examples[batch.examples[n]]
            (row,) = example.positives
            assert batch.generated[n]
            assert batch.candidates[n] in first.candidates
            assert batch.passages.index(row) in batch.candidates[n]
            assert batch.positive[n, batch.passages.index(row)]
        added += len(batch.examples) - drawn
        asked = {sampler.examples[index].positives[0] for index in batch.examples[drawn:]}
        about = {e.positives[0] for e in sampler.examples if e.positives and e.group not in model}
        read = {batch.passages[c] for rows in first.candidates for c in rows}
        assert not (read - asked) & about  # as far as there are questions
    assert added > 40


def test_questions_of_the_same_relation_come_first(corpus: Corpus) -> None:
    examples = [
        question(f"{entity} {relation} {n}", [entity], group=(f"e{entity}", f"r{relation}"))
        for entity in range(6)
        for relation in range(5)
        for n in range(2)
    ]
    given = BatchSettings(examples=1, candidates=6, hard_negatives=0, questions_per_passage=1)
    sampler = BatchSampler([TrainingSource("facts", examples)], given, corpus)
    for step in range(10):
        batch = sampler.reranked(sampler.reading([step]), np.arange(6)[None])(step)
        model = [sampler.examples[index].group for index in batch.examples]
        first, *others = model
        assert sorted(others) == sorted(
            [(f"e{n}", first[1]) for n in range(6) if f"e{n}" != first[0]]
            + [group for group in others if group[0] == first[0]]
        )
        assert len(others) == 6


def test_extra_two_hop_questions_need_both_passages_as_candidates(corpus: Corpus) -> None:
    examples = [question(f"{n}", [n, (n + 1) % 8], group=(f"e{n}", "r")) for n in range(8)]
    given = BatchSettings(examples=1, candidates=4, hard_negatives=0, questions_per_passage=3)
    sampler = BatchSampler([TrainingSource("two hops", examples)], given, corpus)
    added = 0
    for step in range(20):
        batch = sampler(step)
        for n, index in enumerate(batch.examples):
            read = {batch.passages[column] for column in batch.candidates[n]}
            assert set(sampler.examples[index].positives) <= read
        added += len(batch.examples) - 1
    assert added > 0


# --- Bad input ----------------------------------------------------------------------------------


def test_sources_that_cannot_fill_a_batch_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ImpRAGError, match="the source 'reading' has no examples"):
        BatchSampler([reading(0)], BatchSettings(), corpus)
    with pytest.raises(ImpRAGError, match="no source is fit for grids"):
        grid_sampler(corpus, [reading(3)], others=1)
    with pytest.raises(ImpRAGError, match=r"batch.others is 0, but reading would never be drawn"):
        grid_sampler(corpus, [facts(2, 2), reading(3)])
    with pytest.raises(ImpRAGError, match=r"batch.others is 2, but all sources are grids"):
        grid_sampler(corpus, [facts(2, 2)], others=2)
