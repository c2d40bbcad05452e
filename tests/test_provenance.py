"""The summary of how the built-in model was made."""

import json

import yaml

from imprag.model.load import DEFAULT_FOLDER


def test_provenance_is_a_summary_whose_last_training_is_the_shipped_recipe() -> None:
    text = (DEFAULT_FOLDER / "provenance.json").read_text(encoding="utf-8")
    assert text.count("\n") <= 100
    trainings = [step for step in json.loads(text)["steps"] if "steps" in step]
    recipe = yaml.safe_load((DEFAULT_FOLDER / "recipe.yaml").read_text(encoding="utf-8"))
    last = trainings[-1]
    assert last["steps"] == recipe["train"]["steps"]
    assert last["seed"] == recipe["trainer"]["seed"]
    assert last["t"] == recipe["model"]["t"]
