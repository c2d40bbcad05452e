"""Adapters in 8 bits, and embeddings in 8 bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.index.stored_embeddings import OtherEmbeddingsError, StoredEmbeddings, write_embeddings
from imprag.io.files import read_json
from imprag.model import ImpRAGConfig, ImpRAGModel, load_pretrained, save_pretrained
from imprag.model.compact import WEIGHTS, write_changed_adapter, write_compact_adapter
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.peft_adapters import add_adapter

EXACT = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Adapters of different scales, and norms."""
    tiny_lm().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = tiny_lm()
    norms = [f"model.layers.{n}.input_layernorm" for n in range(6)]
    settings = {"alpha_pattern": {"model.layers.1.self_attn.q_proj": 1.0}, "lora_alpha": 16}
    targets = ["q_proj", "down_proj"]
    add_adapter(lm, LoraConfig(r=4, target_modules=targets, modules_to_save=norms, **settings))
    torch.manual_seed(1)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:  # far below what 8-bit floats can tell apart
            torch.nn.init.normal_(parameter, std=1e-4 if "layers.1" in name else 0.05)
        elif "modules_to_save" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model = ImpRAGModel(lm.eval(), ImpRAGConfig(base_model=str(tmp_path / "base"), b=2, t=4))
    save_pretrained(model, tiny_tokenizer(), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_compact_adapter_is_nearly_the_same(adapter: Path, tmp_path: Path) -> None:
    write_compact_adapter(adapter, tmp_path / "small")
    small = load_file(tmp_path / "small" / WEIGHTS)
    large = load_file(adapter / WEIGHTS)
    assert small.keys() == large.keys()
    assert sum(x.nbytes for x in small.values()) < 0.3 * sum(x.nbytes for x in large.values())
    settings = read_json(tmp_path / "small" / "adapter_config.json")
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")  # as ImpRAGConfig has it
    base, exact, compact = (
        load_pretrained(path, **EXACT)[0].lm.state_dict()
        for path in (tmp_path / "base", adapter, tmp_path / "small")
    )
    for name, weight in exact.items():
        change = (weight - base[name]).norm()
        if change:
            error = (compact[name] - weight).norm()
            assert error < (0.05 * change if weight.ndim > 1 else 0.01 * weight.norm()), name
        else:
            assert torch.equal(compact[name], base[name])


@pytest.mark.parametrize("module", ["q_proj", "k_proj"])  # with an adapter, and without one
def test_a_changed_adapter(adapter: Path, tmp_path: Path, module: str) -> None:
    name = f"model.layers.1.self_attn.{module}"
    base, before = (
        load_pretrained(path, **EXACT)[0].lm.state_dict() for path in (tmp_path / "base", adapter)
    )
    change = 0.01 * torch.randn(before[f"{name}.weight"].shape, generator=torch.manual_seed(3))
    write_changed_adapter(adapter, tmp_path / "changed", name, change)
    after = load_pretrained(tmp_path / "changed", **EXACT)[0].lm.state_dict()
    for key, weight in after.items():
        expected = before[key] + change if key == f"{name}.weight" else before[key]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    write_compact_adapter(adapter, tmp_path / "small")
    write_changed_adapter(tmp_path / "small", tmp_path / "small changed", name, change)
    small = load_pretrained(tmp_path / "small changed", **EXACT)[0].lm.state_dict()
    error = small[f"{name}.weight"] - after[f"{name}.weight"]
    assert error.norm() < 0.05 * (after[f"{name}.weight"] - base[f"{name}.weight"]).norm()
    dtypes = {x.dtype for x in load_file(tmp_path / "small changed" / WEIGHTS).values()}
    assert dtypes == {torch.float8_e4m3fn, torch.bfloat16}
    write_changed_adapter(adapter, tmp_path / "low", name, change, max_rank=2)
    low = load_pretrained(tmp_path / "low", **EXACT)[0].lm.state_dict()[f"{name}.weight"]
    assert torch.linalg.matrix_rank(low - before[f"{name}.weight"], tol=1e-5) == 2


def test_what_is_no_adapter(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="holds no adapter; train one by a recipe with lora"):
        write_compact_adapter(tmp_path / "base", tmp_path / "small")
    text = (adapter / "adapter_config.json").read_text().replace('"LORA"', '"IA3"')
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ImpRAGError, match="is IA3, not LORA"):
        write_compact_adapter(adapter, tmp_path / "small")


def test_stored_embeddings(adapter: Path, corpus: Corpus, tmp_path: Path) -> None:
    encoder = PassageEncoder(*load_pretrained(adapter, **EXACT))
    write_embeddings(corpus, encoder, tmp_path / "embeddings")
    stored = StoredEmbeddings(tmp_path / "embeddings", corpus, encoder.fingerprint())
    passages = [corpus[2], corpus[0]]
    assert stored.dimension == encoder.dimension == 32
    largest = np.abs(encoder(list(corpus))).max(axis=0)
    assert (np.abs(stored(passages) - encoder(passages)) <= largest / 250).all()
    with pytest.raises(OtherEmbeddingsError, match="are of another model"):
        StoredEmbeddings(tmp_path / "embeddings", corpus, "another")
    other = Corpus.build([corpus[0]], tmp_path / "other")
    with pytest.raises(OtherEmbeddingsError, match="are of another corpus"):
        StoredEmbeddings(tmp_path / "embeddings", other, encoder.fingerprint())
    (tmp_path / "embeddings").write_bytes(b"no")
    with pytest.raises(ImpRAGError, match="damaged") as raised:
        StoredEmbeddings(tmp_path / "embeddings", corpus, encoder.fingerprint())
    assert not isinstance(raised.value, OtherEmbeddingsError)  # nobody embeds anew without a word
