"""Passages read as the base model encodes them, next to a model that was trained further."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.kv_cache import PassageKVCache, build_kv_cache
from imprag.kv_cache.manifest import states_fingerprint
from imprag.model import ImpRAGConfig, ImpRAGModel, load_pretrained, save_pretrained
from imprag.model.fingerprint import model_fingerprint
from imprag.model.inputs import pad

CPU = torch.device("cpu")
CONFIG = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16)
PASSAGES = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
KINDS = ("hidden_states", "kv")


def model_of(kind: str, family: str = "llama", *, seed: int = 1) -> ImpRAGModel:
    config = dataclasses.replace(CONFIG, frozen_passages=kind)
    return ImpRAGModel(tiny_lm(family, seed=seed), config, tiny_lm(family))


def base(family: str = "llama") -> ImpRAGModel:
    return ImpRAGModel(tiny_lm(family), CONFIG)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_model_reads_its_own_states(family: str, kind: str) -> None:
    own, expected = model_of(kind, family, seed=0), base(family)
    found, wanted = (x.encode(*pad(PASSAGES, CPU), 3) for x in (own, expected))
    assert found.mask.equal(wanted.mask)
    assert_close(found.embeddings, wanted.embeddings)
    for layer in (1, 2, 3):
        mask = found.mask[:, None, :, None]
        for name in ("keys", "values"):
            assert_close(getattr(found, name)[layer] * mask, getattr(wanted, name)[layer] * mask)


@torch.no_grad()
def test_frozen_keys_and_values_are_the_base_models(family: str) -> None:
    model = model_of("kv", family)
    ids, mask = pad(PASSAGES, CPU)
    found, before = model.encode(ids, mask), base(family).encode(ids, mask)
    for layer in (1, 2, 3):
        assert_close(found.keys[layer], before.keys[layer])
        assert_close(found.values[layer], before.values[layer])
    assert_close(found.embeddings, model.passage_embeddings(ids, mask))
    assert (found.embeddings - before.embeddings).abs().max() > 0.1


@torch.no_grad()
def test_keys_and_values_of_frozen_hidden_states_are_the_trained_models() -> None:
    model = model_of("hidden_states")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    found = model.encode(ids, torch.ones_like(ids))
    decoder, frozen = model.lm.model, tiny_lm()
    hidden = frozen.model(ids, output_hidden_states=True).hidden_states
    cos, sin = decoder.rotary_emb(hidden[0], torch.arange(5)[None])
    for number in (1, 2, 3):
        layer = decoder.layers[number]
        states = layer.input_layernorm(hidden[number])
        keys, values = (
            projection(states).view(1, 5, 2, 16).transpose(1, 2)
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        keys = apply_rotary_pos_emb(keys, keys, cos, sin)[0]
        assert_close(found.keys[number], keys, atol=1e-5, rtol=1e-5)
        assert_close(found.values[number], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_learns_from_reading(kind: str, checkpointing: bool) -> None:
    model = model_of(kind)
    if checkpointing:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    states = model.encode(*pad(PASSAGES, CPU))
    keys = torch.stack([*states.keys.values()])
    assert keys.requires_grad == (kind == "hidden_states")
    if kind == "hidden_states":
        keys.sum().backward(retain_graph=True)
        assert learned(model) == {
            f"lm.model.layers.{layer}.{name}.weight"
            for layer in (1, 2, 3)
            for name in ("input_layernorm", "self_attn.k_proj")
        }
    model.zero_grad()
    states.embeddings.sum().backward()
    assert "lm.model.layers.0.mlp.up_proj.weight" in learned(model)
    assert not any(parameter.grad is not None for parameter in model.frozen.parameters())


def learned(model: ImpRAGModel) -> set[str]:
    """Names of the parameters with a gradient."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name for name, grad in found.items() if grad is not None and bool(grad.any())}


def test_one_kv_cache_serves_all_models_of_a_base(tmp_path: Path) -> None:
    corpus = Corpus.build([Passage("p", "w1", "w2 w3 w4")], tmp_path / "corpus")
    store = build_kv_cache(
        corpus, base(), tiny_tokenizer(), tmp_path / "memory", codec="fp32", progress=False
    )
    assert states_fingerprint(model_of("kv"), tiny_tokenizer()) == store.manifest.model_fingerprint
    hidden_states = states_fingerprint(model_of("hidden_states"), tiny_tokenizer())
    assert hidden_states != store.manifest.model_fingerprint
    model = model_of("kv")
    stored = PassageKVCache(model, tiny_tokenizer(), store)
    live = PassageKVCache(model, tiny_tokenizer())
    read = [[corpus[0]]]
    with torch.inference_mode():
        for layer in (1, 2, 3):
            found, expected = (x.kv(read).keys[layer] for x in (stored, live))
            assert_close(found, expected)
    assert (stored.hits, stored.misses) == (3, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    config = dataclasses.replace(
        CONFIG,
        base_model=str(tmp_path / "base"),
        base_model_fingerprint=model_fingerprint(lm, tiny_tokenizer()),
        frozen_passages=kind,
    )
    model = ImpRAGModel(tiny_lm(seed=1), config, lm)
    save_pretrained(model, tiny_tokenizer(), tmp_path / "model")
    loaded, _ = load_pretrained(tmp_path / "model", "float32", "cpu")
    assert not any("frozen" in name for name in model.state_dict())
    with torch.inference_mode():
        found, expected = (x.encode_passages([PASSAGES]) for x in (loaded, model))
        assert_close(found.keys[2], expected.keys[2])
    again = loaded.with_settings(k=1)
    assert again.config.k == 1
    assert again.frozen is not None

    tiny_lm(seed=7).save_pretrained(tmp_path / "base")
    with pytest.raises(ImpRAGError, match="was trained on another"):
        load_pretrained(tmp_path / "model", "float32", "cpu")


def test_frozen_passages_need_the_base_model() -> None:
    with pytest.raises(ImpRAGError, match="as it was before training"):
        ImpRAGModel(tiny_lm(), dataclasses.replace(CONFIG, frozen_passages="kv"))
