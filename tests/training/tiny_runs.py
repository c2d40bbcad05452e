"""A world of facts and recipes that train a tiny model on it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conftest import tiny_lm, tiny_tokenizer
from imprag.training.recipe import Recipe

FACTS = 64


def make_world(path: Path) -> Path:
    """Eight entities × eight relations; the value of each pair is in one passage."""
    tiny_lm().save_pretrained(path / "lm")
    tiny_tokenizer().save_pretrained(path / "lm")
    values = random.Random(0).sample(range(30, 94), FACTS)
    passages, questions = [], []
    for number in range(FACTS):
        entity, relation = f"w{10 + number // 8}", f"w{20 + number % 8}"
        value = f"w{values[number]}"
        passages.append({"id": f"p{number}", "title": entity, "text": f"{relation} {value}"})
        questions.append(
            {
                "id": f"q{number}",
                "input": f"{entity} {relation}",
                "output": [{"answer": value, "provenance": [{"passage_id": f"p{number}"}]}],
            }
        )
    for name, rows in (("corpus", passages), ("nq", questions)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_bert(folder: Path) -> None:
    """A random bi-encoder: sentence-transformers takes the mean of a BERT's states."""
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 32}
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def recipe(world: Path, **sections: Any) -> Recipe:
    content: dict[str, Any] = {
        "model": {
            "base": str(world / "lm"),
            "b": 2,
            "t": 4,
            "k": 2,
            "max_passage_tokens": 8,
            "passage_template": "{text} {title}",
        },
        "corpus": str(world / "corpus.jsonl"),
        "data": [{"tasks": str(world / "nq.jsonl"), "task": "nq", "positives": "gold"}],
        "batch": {"examples": 16, "candidates": 2, "hard_negatives": 0},
        "stages": {"warmup": {"fraction": 0.5}},
        "train": {"steps": 8},
        "trainer": {
            "learning_rate": 3e-3,
            "warmup_steps": 5,
            "bf16": False,
            "save_steps": 3,
            "logging_steps": 1,
        },
    }
    for name, section in sections.items():
        known = content.get(name)
        content[name] = {**known, **section} if isinstance(known, dict) else section
    return Recipe.model_validate(content)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logged(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    timing = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch")
    return [
        {name: value for name, value in json.loads(line).items() if name not in timing}
        for line in lines
    ]
