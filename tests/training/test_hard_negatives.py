"""Hard negative mining."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_batches import tiny_model

from conftest import tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.model import PassageEncoder
from imprag.model.text import prompt_batch
from imprag.training.hard_negatives import HardNegativeMiner
from imprag.training.recipe import Recipe
from imprag.training.schedule import Schedule

PROMPTS = ["w1 w2", "w3", "w4 w5 w6 w7"]


def test_mined_ranks_are_the_models_and_are_stored(tmp_path: Path) -> None:
    passages = [Passage(f"p{n}", f"w{n}", f"w{n + 20} w{n * 7 % 90}") for n in range(30)]
    corpus = Corpus.build(passages, tmp_path / "corpus")
    training = tiny_model().train()
    model = training.model
    tokenizer = tiny_tokenizer()

    def expected() -> np.ndarray:
        with torch.inference_mode():
            batch = prompt_batch(tokenizer, PROMPTS, 100, torch.device("cpu"))
            queries = model.query_embeddings(*batch).numpy()
        scores = queries @ PassageEncoder(model, tokenizer)(passages).T
        return np.argsort(-scores, axis=1)

    ranks = HardNegativeMiner(training, tokenizer, corpus, tmp_path / "ranks", torch.float32)
    before = expected()
    assert ranks(PROMPTS, 5, 10).tolist() == before[:, :5].tolist()
    assert training.training
    assert model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert ranks(PROMPTS, 5, 10).tolist() == before[:, :5].tolist()
    assert ranks(PROMPTS, 99, 20).tolist() == expected().tolist() != before.tolist()
    assert [path.name for path in sorted((tmp_path / "ranks").iterdir())] == [
        "step-10.safetensors",
        "step-20.safetensors",
    ]

    (tmp_path / "ranks" / "step-10.safetensors").write_bytes(b"broken")
    with pytest.raises(ImpRAGError, match="step-10.safetensors is damaged .* delete it"):
        ranks(PROMPTS, 5, 10)


def last_mined(every: int | None) -> list[int | None]:
    """`Schedule.last_mined` of 20 steps; 0 and 1 are ``bottom``, 2 to 7 are ``warmup``."""
    recipe = Recipe.model_validate_json(
        json.dumps(
            {
                "data": [{"tasks": "nq.jsonl", "task": "nq"}],
                "stages": {
                    "bottom": {"fraction": 0.1},
                    "warmup": {"fraction": 0.3},
                    "mine_every": every,
                },
            }
        )
    )
    schedule = Schedule(recipe, 20)
    return [schedule.last_mined(step) for step in range(20)]


def test_mining_happens_at_the_start_of_a_stage_and_every_n_steps() -> None:
    distilling = [*[8] * 4, *[12] * 4, *[16] * 4]
    assert last_mined(None) == [None] * 20
    assert last_mined(4) == [None, None, *[2] * 4, *[6] * 2, *distilling]
    assert last_mined(100) == [None, None, *[2] * 6, *[8] * 12]
