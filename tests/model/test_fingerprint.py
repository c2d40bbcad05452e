"""Fingerprints tell apart what computes other states, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoTokenizer

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.files import read_json, write_json
from imprag.kv_cache import DiskStore, build_kv_cache
from imprag.kv_cache.manifest import states_fingerprint
from imprag.model import ImpRAGConfig, load_pretrained
from imprag.model.fingerprint import config_fingerprint, tokenizer_fingerprint
from imprag.model.passage_encoder import PassageEncoder
from imprag.pipeline import ImpRAG

EMBEDDING = "model.embed_tokens.weight"
KEYS = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fingerprints(folder: Path, dtype: str = "float32") -> tuple[str, str]:
    """Of embeddings (layers 0..b) and of states (layers 0..t)."""
    model, tokenizer = load_pretrained(folder, dtype, "cpu")
    return PassageEncoder(model, tokenizer).fingerprint(), states_fingerprint(model, tokenizer)


def with_config(model: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(model, folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | values)
    return folder


def with_weight(model: Path, folder: Path, name: str, factor: float) -> Path:
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] *= factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "relu"},
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32},
        {"a_setting_to_come": 1},
    ],
)
def test_a_configuration_that_computes_other_states_is_another_model(
    values: dict[str, Any], model: Path
) -> None:
    changed = tiny_lm().config
    for name, value in values.items():
        setattr(changed, name, value)
    assert config_fingerprint(changed) != config_fingerprint(tiny_lm().config)


def test_a_configuration_that_computes_the_same_is_the_same_model(
    model: Path, tmp_path: Path
) -> None:
    other = with_config(
        model,
        tmp_path / "other",
        transformers_version="4.0.0",
        dtype="bfloat16",
        architectures=["X"],
        use_cache=False,
        eos_token_id=[2, 3],
        initializer_range=0.5,
    )
    assert fingerprints(other) == fingerprints(model)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_a_model_is_the_same_in_every_dtype(stored: str, model: Path, tmp_path: Path) -> None:
    lm = tiny_lm().to(getattr(torch, stored))
    lm.save_pretrained(tmp_path / "stored")
    tiny_tokenizer().save_pretrained(tmp_path / "stored")
    wanted = fingerprints(tmp_path / "stored")
    for dtype in ("bfloat16", "float16"):
        assert fingerprints(tmp_path / "stored", dtype) == wanted


@pytest.mark.parametrize("kind", ["pickled", "without the decoder's prefix"])
def test_other_files_of_the_same_weights_are_the_same_model_in_every_dtype(
    kind: str, model: Path, tmp_path: Path
) -> None:
    wanted = fingerprints(model)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    if kind == "pickled":
        torch.save(weights, model / "pytorch_model.bin")
    else:
        alone = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        save_file(alone, model / "model.safetensors", {"format": "pt"})
    for dtype in ("float32", "bfloat16"):
        assert fingerprints(model, dtype) == wanted


def test_a_shard_is_as_good_as_one_file(model: Path, tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    tiny_tokenizer().save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for dtype in ("float32", "bfloat16"):
        assert fingerprints(tmp_path / "sharded", dtype) == fingerprints(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fine_tuning_below_the_precision_of_bfloat16_is_another_model(
    dtype: str, model: Path, tmp_path: Path
) -> None:
    for name in (EMBEDDING, KEYS):
        other = with_weight(model, tmp_path / name, name, 1 + 2e-6)
        found, wanted = fingerprints(other, dtype), fingerprints(model, dtype)
        assert found[0] != wanted[0]
        assert found[1] != wanted[1]
    upper = with_weight(model, tmp_path / "upper", KEYS.replace("1", "3"), 1 + 2e-6)
    found, wanted = fingerprints(upper, dtype), fingerprints(model, dtype)
    assert found[0] == wanted[0]  # b is 1, so no embedding depends on layer 3
    assert found[1] != wanted[1]


def test_a_weight_that_was_changed_after_loading_counts_as_it_is(model: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        loaded, tokenizer = load_pretrained(model, dtype, "cpu")
        encoder = PassageEncoder(loaded, tokenizer)
        before = encoder.fingerprint()
        with torch.no_grad():
            loaded.lm.model.layers[0].mlp.up_proj.weight[0, 0] += 1
        assert encoder.fingerprint() != before


def test_an_adapted_model_is_the_same_in_every_dtype(model: Path, tmp_path: Path) -> None:
    from test_adapter import write_adapter

    folder = write_adapter(model, tmp_path / "adapter")
    found = fingerprints(folder)
    assert fingerprints(folder, "bfloat16") == found
    weights = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    weights[name][0] *= 1 + 1e-3
    save_file(weights, folder / "adapter_model.safetensors")
    for dtype in ("float32", "bfloat16"):
        other = fingerprints(folder, dtype)
        assert other[0] != found[0]
        assert other[1] != found[1]


def test_another_tokenizer_is_another_model(model: Path, tmp_path: Path) -> None:
    wanted = tokenizer_fingerprint(AutoTokenizer.from_pretrained(model))
    content = (model / "tokenizer.json").read_text()
    swapped = content.replace('"w3"', '"w?"').replace('"w4"', '"w3"').replace('"w?"', '"w4"')
    normalizer = json.dumps(json.loads(content) | {"normalizer": {"type": "Lowercase"}})
    for text in (swapped, normalizer):
        shutil.copytree(model, tmp_path / "other", dirs_exist_ok=True)
        (tmp_path / "other" / "tokenizer.json").write_text(text)
        other = AutoTokenizer.from_pretrained(tmp_path / "other")
        assert tokenizer_fingerprint(other) != wanted
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer(["w1", "w2 w3"], padding=True, truncation=True, max_length=5)
    assert tokenizer_fingerprint(tokenizer) == wanted  # how it was called is forgotten
    tokenizer.add_tokens([AddedToken("w1w2")])
    assert tokenizer_fingerprint(tokenizer) != wanted


def test_index_and_kv_cache_of_another_configuration_or_tokenizer_are_refused(
    model: Path, corpus: Corpus, tmp_path: Path
) -> None:
    loaded, tokenizer = load_pretrained(model, "float32", "cpu")
    index = tmp_path / "index"
    IndexFolder.build(corpus, PassageEncoder(loaded, tokenizer), index, progress=False)
    build_kv_cache(corpus, loaded, tokenizer, tmp_path / "cache", progress=False)

    def use(folder: Path, kv_cache: bool) -> None:
        rag = ImpRAG.from_pretrained(folder, None if kv_cache else index, dtype="float32")
        if kv_cache:
            rag._source.folder = IndexFolder.open(index)
            rag.use_kv_cache(tmp_path / "cache")

    rope = {"rope_theta": 50.0, "rope_type": "default"}
    other_rope = with_config(model, tmp_path / "rope", rope_parameters=rope)
    other_eps = with_config(model, tmp_path / "eps", rms_norm_eps=1e-2)
    other_words = with_config(model, tmp_path / "words")
    text = (model / "tokenizer.json").read_text()
    (other_words / "tokenizer.json").write_text(text.replace('"w93"', '"word"'))
    for kv_cache in (False, True):
        use(model, kv_cache)
        for folder in (other_rope, other_eps, other_words):
            with pytest.raises(ImpRAGError, match=r"made by another model.*imprag \w+"):
                use(folder, kv_cache)
    opened = DiskStore(tmp_path / "cache")  # by the caller
    with pytest.raises(ImpRAGError, match="made by another model"):
        ImpRAG(*load_pretrained(other_eps, "float32", "cpu")).use_kv_cache(opened)


def test_an_index_of_an_earlier_version_is_refused_with_the_command_that_rebuilds(
    model: Path, corpus: Corpus, tmp_path: Path
) -> None:
    loaded, tokenizer = load_pretrained(model, "float32", "cpu")
    IndexFolder.build(corpus, PassageEncoder(loaded, tokenizer), tmp_path / "i", progress=False)
    build_kv_cache(corpus, loaded, tokenizer, tmp_path / "cache", progress=False)
    for path in (tmp_path / "i" / "index" / "index.json", tmp_path / "cache" / "kv_cache.json"):
        write_json(path, read_json(path) | {"model_fingerprint": "0123456789abcdef" * 2})
    with pytest.raises(ImpRAGError, match=r"earlier version of.*: imprag index .* --overwrite"):
        ImpRAG.from_pretrained(model, tmp_path / "i", dtype="float32")
    rag = ImpRAG(loaded, tokenizer)
    rag._source.folder = IndexFolder.open(tmp_path / "i")
    with pytest.raises(ImpRAGError, match="earlier version of.*: imprag kv build .* --overwrite"):
        rag.use_kv_cache(tmp_path / "cache")


def test_other_rules_of_encoding_text_are_another_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as what counts as a control token; no setting names it."""
    before = fingerprints(model)
    rules = {
        "encode_text": lambda tokenizer, texts: tokenizer(texts)["input_ids"],
        "prefix_ids": lambda tokenizer: [1],
    }
    for name, rule in rules.items():
        with monkeypatch.context() as patched:
            patched.setattr(f"imprag.model.text.{name}", rule)
            assert not set(fingerprints(model)) & set(before), name
    assert fingerprints(model) == before


def test_settings_that_decide_states_are_part_of_the_fingerprint(model: Path) -> None:
    config = {"base_model": "m", "b": 1, "t": 4}
    assert ImpRAGConfig(**config).embedding_settings() == {
        "b": 1,
        "max_passage_tokens": 256,
        "passage_template": "{title}\n{text}",
        "pooling_point": "last",
        "rope": "before",
    }
