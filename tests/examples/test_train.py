"""The batch sampler of the built-in model's recipes: grids of entities with similar names."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import train
from train import SimilarNames, name_vectors

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.model.base import BaseModel
from imprag.training.data import TrainingExample, TrainingSource
from imprag.training.recipe import BatchSettings, Recipe
from imprag.training.run import train as run_training
from imprag.training.samplers.batch_sampler import BatchSampler

ENTITIES, RELATIONS = 24, 3


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    passages = [Passage(f"p{n}", f"title {n}", f"text t{n}") for n in range(ENTITIES)]
    return Corpus.build(passages, tmp_path / "corpus")


def source() -> TrainingSource:
    """A question for each pair of an entity and a relation."""
    examples = [
        TrainingExample(
            f"{entity} {relation}",
            f"{entity} {relation}?",
            f" {entity}",
            (entity,),
            group=(f"entity {entity}", f"relation {relation}"),
        )
        for entity in range(ENTITIES)
        for relation in range(RELATIONS)
    ]
    return TrainingSource("facts", examples)


def likeness(sampler: BatchSampler, names: Mapping[str, np.ndarray]) -> float:
    """Mean cosine of the entities of a batch, over an epoch, in which each cell comes once."""
    batches = [sampler(step) for step in range(ENTITIES // 4)]
    groups = [[sampler.examples[index].group for index in batch.examples] for batch in batches]
    assert len({cell for batch in groups for cell in batch}) == ENTITIES * RELATIONS
    means = []
    for batch in groups:
        vectors = np.stack([names[name] for name in sorted({name for name, _ in batch})])
        assert len(vectors) == 4
        means.append((vectors @ vectors.T)[np.triu_indices(4, 1)].mean())
    return float(np.mean(means))


def test_a_grid_holds_entities_with_similar_names(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(0).normal(size=(ENTITIES, 4))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    names = {f"entity {n}": vector for n, vector in enumerate(drawn)}
    monkeypatch.setattr(train, "name_vectors", lambda asked: {name: names[name] for name in asked})
    settings = BatchSettings(grid=(4, 3), hard_negatives=0, candidates=1)

    def made(sampler: type[BatchSampler], seed: int) -> BatchSampler:
        return sampler([source()], settings, corpus, seed)

    similar = [likeness(made(SimilarNames, seed), names) for seed in range(5)]
    random = [likeness(made(BatchSampler, seed), names) for seed in range(5)]
    assert min(similar) > max(random) + 0.1
    one, other = (made(SimilarNames, seed)(0).examples for seed in (0, 1))
    assert one != other  # other groups each time


def test_names_are_compared_by_the_base_models_token_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, tokenizer = tiny_lm(), tiny_tokenizer()
    monkeypatch.setattr(train, "load_base_model", lambda name, dtype: BaseModel(lm, tokenizer))
    assert name_vectors([]) == {}
    names = [f"w{n}" for n in range(10, 18)]
    ids = tokenizer(names, add_special_tokens=False)["input_ids"]
    weight = lm.get_input_embeddings().weight.detach()[[token for (token,) in ids]]
    expected = torch.nn.functional.normalize(weight - weight.mean(0), dim=1)
    found = name_vectors(names)
    vectors = torch.stack([torch.from_numpy(found[name]) for name in names])
    torch.testing.assert_close(vectors, expected.double(), atol=1e-6, rtol=0)


def test_a_recipe_trains_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, tokenizer = tiny_lm(), tiny_tokenizer()
    lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    monkeypatch.setattr(train, "load_base_model", lambda name, dtype: BaseModel(lm, tokenizer))
    passages, questions = [], []
    for n in range(16):
        entity, relation = f"w{10 + n // 4}", f"w{20 + n % 4}"
        passages.append({"id": f"p{n}", "title": entity, "text": f"{relation} w{30 + n}"})
        output = [{"answer": f"w{30 + n}", "provenance": [{"passage_id": f"p{n}"}]}]
        named = {"meta": {"group": [entity, relation]}} if n % 2 else {}
        questions.append({"id": f"q{n}", "input": f"{entity} {relation}", "output": output} | named)
    # The second source has titles without relations, which get grids of their own.
    files = {"corpus": passages, "facts": questions[1::2], "titles": questions[::2]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "model": {"base": str(tmp_path / "lm"), "b": 2, "t": 4, "k": 2},
            "corpus": str(tmp_path / "corpus.jsonl"),
            "data": [
                {"tasks": str(tmp_path / f"{name}.jsonl"), "task": "nq", "positives": "gold"}
                for name in ("facts", "titles")
            ],
            "batch": {
                "sampler": "similar_names",
                "grid": [2, 2],
                "candidates": 2,
                "hard_negatives": 0,
            },
            "train": {"steps": 3},
            "trainer": {"bf16": False, "save_steps": 3},
        }
    )
    assert run_training(recipe, tmp_path / "run")["steps"] == 3
