"""Two hops: the response names the bridge first, and the separator retrieves again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import make_world, recipe

from conftest import tiny_tokenizer
from imprag import ImpRAG, evaluate
from imprag.corpus import Corpus, Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.tasks import Answer, Example, Hops, read_tasks
from imprag.training.batches import Batches
from imprag.training.data import TrainingExample, TrainingSource, bridge_examples, load_sources
from imprag.training.data_cost import estimate_data
from imprag.training.recipe import BatchSettings, Recipe
from imprag.training.run import train
from imprag.training.samplers import BatchIndices
from imprag.training.samplers.batch_sampler import BatchSampler
from imprag.training.schedule import Schedule

COUNT = 16
SEPARATOR = "w93"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen entities, each linked to a bridge, and a value of every bridge."""
    path = make_world(tmp_path_factory.mktemp("world"))
    passages, questions = [], []
    for n in range(COUNT):
        entity, bridge, value = f"w{10 + n}", f"w{30 + n}", f"w{50 + n}"
        passages += [
            {"id": f"first{n}", "title": entity, "text": f"w5 {bridge}"},
            {"id": f"second{n}", "title": bridge, "text": f"w6 {value}"},
        ]
        proof = [{"passage_id": f"first{n}"}, {"passage_id": f"second{n}"}]
        questions.append(
            {
                "id": f"q{n}",
                "input": f"w7 {entity}",
                "output": [{"answer": value, "provenance": proof}],
                "meta": {"bridge_answer": bridge},
            }
        )
    for name, rows in (("corpus", passages), ("hops", questions)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def two_hops(world: Path, **sections: Any) -> Recipe:
    source = {"tasks": str(world / "hops.jsonl"), "task": "hotpotqa", "positives": "hops"}
    model = {"retrieve": (f"on:{SEPARATOR}", "instead")}
    return recipe(
        world,
        **{
            "model": model,
            "data": [source],
            "stages": {"warmup": {"fraction": 1.0}},
            **sections,
        },
    )


def test_a_tiny_model_learns_both_hops(world: Path, tmp_path: Path) -> None:
    settings = two_hops(world, train={"steps": 180}, trainer={"save_steps": 180})
    done = train(settings, tmp_path / "run")
    rag = ImpRAG.from_pretrained(done["model"], dtype="float32")
    assert (rag.config.retrieve, rag.config.passages_kept) == (f"on:{SEPARATOR}", "instead")
    corpus = load_corpus(settings.corpus)
    IndexFolder.build(corpus, rag.encoder, tmp_path / "index", progress=False)
    rag = ImpRAG.from_pretrained(done["model"], tmp_path / "index", dtype="float32")
    tasks = read_tasks([f"hotpotqa={world / 'hops.jsonl'}"])
    metrics = {
        kind: {
            name: value["mean"]
            for name, value in evaluate(rag, tasks, tmp_path / kind, k=1, **own)["tasks"][
                "hotpotqa"
            ]["metrics"].items()
        }
        for kind, own in {"again": {}, "once": {"retrieve": "once"}}.items()
    }
    assert metrics["again"]["retrievals"] == 2
    assert metrics["again"]["all_passage_recall@1"] > 0.9
    assert metrics["again"]["exact_match"] > 0.9
    assert metrics["once"]["passage_recall@1"] == 0


# --- Examples -----------------------------------------------------------------------------------


def test_examples_have_a_response_and_positives_for_each_hop(world: Path) -> None:
    settings = two_hops(world)
    corpus = load_corpus(settings.corpus)
    (source,) = load_sources(settings, corpus)
    for n, example in enumerate(source.examples):
        first, second = corpus.rows([f"first{n}", f"second{n}"])
        assert example.response == f" w{30 + n} {SEPARATOR} w{50 + n}"
        assert example.positives == (first,)
        assert example.later == ((second,),)
        assert second in example.known
    (plain,) = load_sources(two_hops(world, data=[_plain(world)]), corpus)
    assert plain.examples[0].response == " w50"
    assert "later" not in repr(plain.examples[0])  # fingerprints of other runs stay
    assert source.fingerprint() != plain.fingerprint()


def test_a_dry_run_checks_both_hops_and_counts_the_bridge(world: Path, tmp_path: Path) -> None:
    def tokens(**sections: Any) -> float:
        (source,) = estimate_data(two_hops(world, **sections))[1]
        return source.response_tokens

    plain = tokens(data=[_plain(world)])
    assert tokens() == plain + 2  # the bridge and the separator
    rows = [json.loads(line) for line in (world / "hops.jsonl").read_text().splitlines()]
    rows[7]["meta"]["bridge_answer"] = 7
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ImpRAGError, match="'q7' of task 'hotpotqa' cannot name its bridge first"):
        tokens(data=[{"tasks": str(own), "task": "hotpotqa", "positives": "hops"}])
    rows[7]["output"][0]["provenance"][0]["passage_id"] = "nowhere"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ImpRAGError, match="example 'q7' names .* 'nowhere', which the corpus"):
        tokens(data=[{"tasks": str(own), "task": "hotpotqa", "positives": "gold"}])


def _plain(world: Path) -> dict[str, Any]:
    return {"tasks": str(world / "hops.jsonl"), "task": "hotpotqa", "positives": "gold"}


@pytest.mark.parametrize(
    "broken",
    [
        *("no bridge", "separator in it", "two lines", "no text", "one passage"),
        *("separator in the answer", "no answer"),
    ],
)
def test_examples_without_a_bridge_are_refused(world: Path, broken: str) -> None:
    corpus = load_corpus(two_hops(world).corpus)
    (tasks,) = read_tasks([f"hotpotqa={world / 'hops.jsonl'}"])
    example = tasks.examples[0]
    if broken == "one passage":
        output = [replace(example.output[0], provenance=example.output[0].provenance[:1])]
        example = replace(example, output=output)
    elif "answer" in broken:
        answer = "" if broken == "no answer" else f"w5 {SEPARATOR} w50"
        example = replace(example, output=[replace(example.output[0], answer=answer)])
    else:
        texts = {"separator in it": f"w1 {SEPARATOR}", "two lines": "w1\nw2", "no text": ["w1"]}
        example = replace(example, meta={"bridge_answer": texts.get(broken)})
    made = [TrainingExample(example.id, "?", " w50", (0,))]
    with pytest.raises(ImpRAGError, match="cannot name its bridge first"):
        bridge_examples(replace(tasks, examples=[example]), made, corpus, SEPARATOR)


@pytest.mark.parametrize(
    ("provenance", "hops"),
    [
        ([["a", "b"], ["c", "b"]], (["a", "c"], ["b"])),
        ([["a", "b"], []], (["a"], ["b"])),
        ([["a", "b"], ["c"]], None),
        ([["a", "b", "c"]], None),
        ([["a", "a"]], None),
        ([["a", None]], None),  # KILT's references name pages
        ([[]], None),
    ],
)
def test_both_hops_come_from_the_answers_provenance(
    provenance: list[list[str | None]], hops: tuple[list[str], list[str]] | None
) -> None:
    output = [
        Answer("8,849 m", [{"passage_id": id} if id else {"wikipedia_id": "1"} for id in ids])
        for ids in provenance
    ]
    example = Example("1", "?", output, {"bridge_answer": " Nepal "})
    assert replace(example, meta={}).hops is None
    assert example.hops == (hops and Hops("Nepal", *hops))
    assert Hops("Nepal", ["a"], ["b"]).named("Q: A:", ";") == "Q: A: Nepal ;"


@pytest.mark.parametrize(
    "meta",
    [
        *(
            {"bridge_answer": "Nepal"},
            {"country": "Nepal"},
            {"country": "Nepal", "bridge_answer": ""},
        ),
        *({"country": "India", "bridge_answer": "Nepal"}, {}),
    ],
)
def test_the_factbooks_task_reads_questions_of_other_files(
    meta: dict[str, str], tmp_path: Path
) -> None:
    pair = [{"passage_id": "a"}, {"passage_id": "b"}]
    row = {"id": "1", "input": "?", "output": [{"answer": "8,849 m", "provenance": pair}]}
    row["meta"] = {**meta, "group": ["Nepal", "highest point"]}
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(row))
    (tasks,) = read_tasks([f"factbook/two_hop={file}"])
    assert tasks.examples[0].hops == (Hops("Nepal", ["a"], ["b"]) if meta else None)
    assert tasks.examples[0].meta["group"] == ["Nepal", "highest point"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"retrieve": "once"}}, "hops needs model.retrieve"),
        ({"model": {"retrieve": "every:4"}}, "hops needs model.retrieve"),
        ({"stages": {"warmup": {"fraction": 0.5}}}, "warmup.fraction to 1"),
        ({"stages": {"warmup": {"fraction": 1}, "mine_every": 5}}, "leave out stages.mine_every"),
        ({"model": {"retrieve": "sometimes"}}, "once, every:N"),
    ],
)
def test_recipes_that_cannot_train_the_second_hop_are_refused(
    world: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        two_hops(world, **sections)


# --- Batches ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> BatchSampler:
    folder = tmp_path_factory.mktemp("sampler") / "corpus"
    corpus = Corpus.build([Passage(f"p{n}", "", f"f{n}") for n in range(40)], folder)
    hops = [
        TrainingExample(f"{n}", f"{n}?", f" {n}", (n,), known=(n + 20,), later=((n + 20, n + 10),))
        for n in range(8)
    ]
    plain = [TrainingExample(f"p{n}", f"{n}?", f" {n}", (n + 30,)) for n in range(8)]
    given = BatchSettings(examples=6, positives=2, hard_negatives=0, candidates=3)
    sources = [TrainingSource("hops", hops), TrainingSource("plain", plain)]
    return BatchSampler(sources, given, corpus)


def check(batch: BatchIndices, sampler: BatchSampler) -> None:
    count = len(batch.examples)
    assert (
        batch.positive.shape
        == batch.negative.shape
        == (count + len(batch.later), len(batch.columns))
    )
    assert batch.cross_batch_negative.shape[0] == count + len(batch.later)
    rows = np.array(batch.columns)
    for row, one in enumerate(batch.later, count):
        example = sampler.examples[batch.examples[one.prompt]]
        assert set(rows[batch.positive[row]]) <= set(example.later[0])
        assert not set(rows[batch.negative[row]]) & set(example.later[0])
        assert not batch.positive[one.prompt][batch.positive[row]].any()
        assert not batch.negative[one.prompt][batch.columns.index(example.later[0][0])]


def test_batches_have_a_row_for_each_later_query(sampler: BatchSampler) -> None:
    for step in range(8):
        batch = sampler(step)
        check(batch, sampler)
        asking = [n for n, i in enumerate(batch.examples) if sampler.examples[i].later]
        assert [one.prompt for one in batch.later] == asking
        for row, one in enumerate(batch.later, len(batch.examples)):
            example = sampler.examples[batch.examples[one.prompt]]
            read = [batch.passages[column] for column in one.candidates]
            assert len(set(read)) == len(read) == 3
            assert set(read) & set(example.later[0])
            first = batch.columns.index(example.positives[0])
            assert batch.negative[row][first]  # it has been read
    assert any(sampler(step).later for step in range(8))


def test_two_processes_share_later_queries(sampler: BatchSampler) -> None:
    for step in range(8):
        batch = sampler(step)
        shards = [batch.shard(rank, 2) for rank in range(2)]
        for shard in shards:
            check(shard, sampler)
            for one in shard.later:
                assert all(0 <= column < len(shard.passages) for column in one.candidates)
        assert sum(len(shard.later) for shard in shards) == len(batch.later)
        for kind in ("positive", "negative"):
            assert sum(getattr(s, kind).sum() for s in shards) == getattr(batch, kind).sum()


def test_tokens_that_ask_in_training_are_those_that_ask_at_inference(world: Path) -> None:
    bottom = {"bottom": {"fraction": 0.5}, "warmup": {"fraction": 0.5}}
    settings = two_hops(world, stages=bottom)
    corpus = load_corpus(settings.corpus)
    made = BatchSampler(load_sources(settings, corpus), settings.batch, corpus)
    tokenizer = tiny_tokenizer()
    batches = Batches(made, Schedule(settings, 8), corpus, tokenizer, settings)
    for step in (0, 7):  # only retrieval, and generation
        batch = batches[step]
        assert len(batch.later) == len(batch.prompts) == 16
        assert len(batch.positive) == 32
        for one in batch.later:
            assert tokenizer.decode(one.written).split()[1:] == [SEPARATOR]
            assert bool(one.candidates) == (step == 7)
            response = batch.responses[one.prompt]
            assert response == [] if step == 0 else response[:2] == list(one.written)
