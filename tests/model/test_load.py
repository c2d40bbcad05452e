"""Saving and loading settings with full weights or an adapter."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from conftest import tiny_lm, tiny_tokenizer
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, ImpRAGModel, load_pretrained, save_pretrained
from imprag.model.fingerprint import model_fingerprint, rounded_weights_fingerprint
from imprag.model.inputs import pad
from imprag.model.load import default_config
from imprag.model.peft_adapters import add_adapter

EXACT = {"dtype": "float32", "device": "cpu"}


def embed(model: ImpRAGModel) -> torch.Tensor:
    with torch.no_grad():
        return model.passage_embeddings(*pad([[5, 6, 7], [8, 9]], model.device))


def test_full_weights(tmp_path: Path) -> None:
    config = ImpRAGConfig(base_model="tiny", b=2, t=4, k=5, trained=True)
    model = ImpRAGModel(tiny_lm(), config)
    save_pretrained(model, tiny_tokenizer(), tmp_path / "model")
    loaded, tokenizer = load_pretrained(tmp_path / "model", **EXACT)
    assert loaded.config == config
    assert tokenizer("w1").input_ids == [4]
    torch.testing.assert_close(embed(loaded), embed(model))
    other, _ = load_pretrained(tmp_path / "model", **EXACT, k=2)
    assert other.config == dataclasses.replace(config, k=2)
    with pytest.raises(ImpRAGError, match="exists already"):
        save_pretrained(model, tiny_tokenizer(), tmp_path / "model")


def test_adapter_is_small_and_knows_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    lm = tiny_lm()
    lm.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    fingerprint = model_fingerprint(lm, tiny_tokenizer())
    config = ImpRAGConfig(base_model=str(base), b=2, t=4, base_model_fingerprint=fingerprint)
    before = embed(ImpRAGModel(lm, config))
    add_adapter(lm, LoraConfig(r=4, target_modules=["q_proj", "k_proj", "up_proj"]))
    torch.manual_seed(1)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model = ImpRAGModel(lm.eval(), config)
    save_pretrained(model, tiny_tokenizer(), tmp_path / "adapter")
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "imprag.json"} <= names
    assert "model.safetensors" not in names

    loaded, _ = load_pretrained(tmp_path / "adapter", **EXACT)
    torch.testing.assert_close(embed(loaded), embed(model), atol=1e-5, rtol=1e-5)
    assert (embed(loaded) - before).abs().max() > 1e-3
    assert not any("lora" in name for name, _ in loaded.named_parameters())

    tiny_lm(seed=7).save_pretrained(base)
    with pytest.raises(ImpRAGError, match="was trained on another .*base"):
        load_pretrained(tmp_path / "adapter", **EXACT)


def test_an_adapter_of_an_earlier_version_is_compared_as_it_was_then(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    config = ImpRAGConfig(
        base_model=str(tmp_path / "base"),
        b=2,
        t=4,
        base_model_fingerprint=rounded_weights_fingerprint(lm),
    )
    add_adapter(lm, LoraConfig(r=4, target_modules=["q_proj"]))
    save_pretrained(ImpRAGModel(lm.eval(), config), tiny_tokenizer(), tmp_path / "adapter")
    load_pretrained(tmp_path / "adapter", **EXACT)
    tiny_lm(seed=7).save_pretrained(tmp_path / "base")
    with pytest.raises(ImpRAGError, match="was trained on another"):
        load_pretrained(tmp_path / "adapter", **EXACT)


def test_a_plain_model_gets_boundaries_to_begin_with(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = load_pretrained(tmp_path, **EXACT)
    assert (model.config.b, model.config.t, model.config.trained) == (1, 4, False)
    assert [default_config("m", n).b for n in (2, 12, 28, 80)] == [0, 3, 7, 7]
    assert default_config("smollm2-135m", 30).t == 20


def test_prompts_stand_behind_all_passages_that_there_could_be() -> None:
    config = ImpRAGConfig(base_model="tiny", b=1, t=2, k=4, max_passage_tokens=16)
    assert [config.position_shift(n) for n in (0, 1, 4, 6)] == [0, 64, 64, 96]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"b": 1, "t": 2}, "lacks base_model"),
        ({"base_model": "m", "b": 3, "t": 2}, "0 <= b < t"),
        ({"base_model": "m", "b": 1, "t": 2, "q": 3}, "unknown settings: q"),
        ({"base_model": "m", "b": 1, "t": 2, "format_version": 99}, "newer ImpRAG"),
        ({"base_model": "m", "b": 1, "t": 2, "rope": "after"}, "only 'before' is supported now"),
        ({"base_model": "m", "b": 1, "t": 2, "pooling_point": "eos"}, "only 'last' is supported"),
        ({"base_model": "m", "b": "1", "t": 2}, "imprag.json: "),
        ([], "one JSON object"),
    ],
)
def test_broken_settings(tmp_path: Path, values: object, message: str) -> None:
    (tmp_path / "imprag.json").write_text(json.dumps(values))
    with pytest.raises(ImpRAGError, match=message):
        ImpRAGConfig.load(tmp_path)
    (tmp_path / "imprag.json").write_text("{")
    with pytest.raises(ImpRAGError, match="not valid JSON"):
        ImpRAGConfig.load(tmp_path)
