"""Prompts read the same from a store as from passages encoded on the spot."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.kv_cache import DiskStore, PassageKVCache, RamStore, build_kv_cache
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.generate import fixed
from imprag.model.inputs import pad

PASSAGES = [
    Passage(f"p{n}", f"w{n}", " ".join(f"w{(7 * n + i) % 94}" for i in range(3 + n)))
    for n in range(20)
]
READ = [[PASSAGES[3], PASSAGES[1]], [], [PASSAGES[9], PASSAGES[3], PASSAGES[0]]]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def tiny_imprag_model(family: str = "llama", seed: int = 0, **settings: object) -> ImpRAGModel:
    values = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, **settings}
    return ImpRAGModel(tiny_lm(family, seed=seed), ImpRAGConfig(base_model="tiny", **values))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.build(PASSAGES, tmp_path_factory.mktemp("corpus") / "corpus")


def logits(model: ImpRAGModel, cache: PassageKVCache, read=READ) -> torch.Tensor:
    ids, mask = pad(PROMPTS[: len(read)], torch.device("cpu"), left=True)
    with torch.inference_mode():
        output = model(ids, mask, fixed(cache.kv(read)), position_shift=48).logits
    return output[mask.bool()]


def live(model: ImpRAGModel) -> PassageKVCache:
    return PassageKVCache(model, tiny_tokenizer())


def build(model: ImpRAGModel, corpus: Corpus, out: Path, **settings: object) -> DiskStore:
    settings = {"codec": "fp32", "shard_passages": 6, "progress": False, **settings}
    return build_kv_cache(corpus, model, tiny_tokenizer(), out, **settings)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_stored_states_are_read_as_live_ones(family: str, corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_imprag_model(family)
    cache = PassageKVCache(model, tiny_tokenizer(), build(model, corpus, tmp_path / "cache"))
    assert_close(logits(model, cache), logits(model, live(model)), rtol=1e-5, atol=1e-5)
    assert (cache.hits, cache.misses) == (4, 0)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_bfloat16_models_states_are_stored_as_they_are(
    family: str, corpus: Corpus, tmp_path: Path
) -> None:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16)
    model = ImpRAGModel(tiny_lm(family).to(torch.bfloat16), config)
    store = build(model, corpus, tmp_path / "cache", codec="bf16")
    cache = PassageKVCache(model, tiny_tokenizer(), store)
    assert_close(logits(model, cache), logits(model, live(model)), rtol=0, atol=1e-3)
    assert (cache.hits, cache.misses) == (4, 0)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_coded_states_are_read_nearly_as_live_ones(codec: str, corpus: Corpus, tmp_path) -> None:
    model = tiny_imprag_model()
    store = build(model, corpus, tmp_path / "cache", codec=codec)
    expected = logits(model, live(model))
    error = logits(model, PassageKVCache(model, tiny_tokenizer(), store)) - expected
    limit = {"bf16": 0.01, "int8": 0.03}[codec]
    assert 0 < error.norm() / expected.norm() < limit


def test_rows_of_other_passages_do_not_matter(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_imprag_model()
    cache = PassageKVCache(model, tiny_tokenizer(), build(model, corpus, tmp_path / "cache"))
    together = cache.kv(READ)
    for row, read in enumerate(READ):
        alone = cache.kv([read])
        length = alone.mask.shape[1]
        assert together.mask[row].tolist() == [i < length for i in range(together.mask.shape[1])]
        for layer in alone.keys:
            assert_close(together.keys[layer][row, :, :length], alone.keys[layer][0])
            assert_close(together.values[layer][row, :, :length], alone.values[layer][0])


def test_a_missing_passage_is_encoded_and_counted(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_imprag_model()
    store = build(model, corpus, tmp_path / "cache", rows=[3, 9, 17])
    assert len(store) == 3
    cache = PassageKVCache(model, tiny_tokenizer(), store)
    assert_close(logits(model, cache), logits(model, live(model)), rtol=1e-5, atol=1e-5)
    assert (cache.hits, cache.misses) == (2, 2)  # p3 and p9; p1 and p0


def test_a_passage_with_the_id_of_another_is_not_taken_for_it(corpus, tmp_path) -> None:
    model = tiny_imprag_model()
    cache = PassageKVCache(model, tiny_tokenizer(), build(model, corpus, tmp_path / "cache"))
    changed = [[Passage("p3", "w3", "w80 w81 w82")], [Passage("new", "w3", "w50 w51")]]
    expected = logits(model, live(model), changed)
    assert_close(logits(model, cache, changed), expected, rtol=1e-5, atol=1e-5)
    assert cache.misses == 2


@pytest.mark.parametrize("codec", ["fp32", "int8", "pq"])
def test_states_kept_coded_are_read_as_decoded_ones(codec: str, tmp_path: Path) -> None:
    model = tiny_imprag_model()
    many = Corpus.build(
        [
            Passage(f"p{n}", "w1", " ".join(f"w{(3 * n + i) % 94}" for i in range(9)))
            for n in range(60)
        ],
        tmp_path / "corpus",
    )
    read = [[many[3], many[5]], [], [many[9]]]
    store = build(model, many, tmp_path / "cache", codec=codec)
    coded = PassageKVCache(model, tiny_tokenizer(), store, keep_coded=True)
    decoded = PassageKVCache(model, tiny_tokenizer(), store)
    assert_close(logits(model, coded, read), logits(model, decoded, read))
    prefix = coded.kv(read)
    assert prefix.nbytes == store.manifest.bytes_per_vector * 2 * 3 * 2 * 3 * 10
    assert list(prefix.keys) == [1, 2, 3]


def test_ram_keeps_what_was_asked_for_last() -> None:
    model = tiny_imprag_model()
    codec = untrained_codec("fp32", 16)
    a_token = 2 * 3 * 2 * codec.bytes_per_vector
    store = RamStore(codec, max_bytes=40 * a_token)
    cache = PassageKVCache(model, tiny_tokenizer(), store)
    for _ in range(2):
        assert_close(logits(model, cache), logits(model, live(model)), rtol=1e-5, atol=1e-5)
    assert (cache.hits, cache.misses) == (4, 4)
    cache.kv([[PASSAGES[15]], [PASSAGES[16]]])
    assert store.bytes <= store.max_bytes
    assert store.bytes == sum(
        part.nbytes for parts in store._parts.values() for part in parts.values()
    )
    cache.kv([[PASSAGES[16]]])
    cache.kv([[PASSAGES[1]]])  # went long ago
    assert (cache.hits, cache.misses) == (5, 7)


def test_half_of_the_tokens_are_those_that_receive_most_attention() -> None:
    model = tiny_imprag_model()
    ids, mask = pad([list(range(5, 16)), list(range(30, 37))], torch.device("cpu"))
    with torch.inference_mode():
        states = model.encode(ids, mask, with_attention=True)
        eager = tiny_lm()
        eager.set_attn_implementation("eager")
        weights = eager(ids, output_attentions=True).attentions
    for row, length in ((0, 11), (1, 7)):
        block = states.blocks(0.5)[row]
        kept = -(-length // 2)
        assert block.shape == (2, 3, 2, kept, 16)
        for layer, head in itertools.product(range(3), range(2)):
            received = weights[layer + 1][row, 3 * head : 3 * head + 3, :length, :length]
            best = received.sum(dim=(0, 1)).topk(kept).indices.sort().values
            for kind, whole in enumerate((states.keys, states.values)):
                assert_close(block[kind, layer, head], whole[layer + 1][row, head, best])


def test_heavy_hitters_and_codes_combine(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_imprag_model()
    whole = build(model, corpus, tmp_path / "whole", codec="int8")
    half = build(model, corpus, tmp_path / "half", codec="int8", kv_keep_ratio=0.5)
    assert 0.5 <= half.manifest.tokens / whole.manifest.tokens < 0.56
    cache = PassageKVCache(model, tiny_tokenizer(), half)
    assert torch.isfinite(logits(model, cache)).all()


def test_a_passage_that_a_store_of_halves_lacks_is_halved(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_imprag_model()
    codec = untrained_codec("fp32", 16)
    half = build(model, corpus, tmp_path / "half", codec="fp32", kv_keep_ratio=0.5)
    stored = PassageKVCache(model, tiny_tokenizer(), half)
    encoded = PassageKVCache(model, tiny_tokenizer(), RamStore(codec, 10**6, 0.5))
    assert_close(logits(model, encoded), logits(model, stored))
    assert not torch.allclose(logits(model, encoded), logits(model, live(model)))


def test_codecs_that_need_the_position_of_every_token_keep_all(corpus, tmp_path) -> None:
    model, message = tiny_imprag_model(), "the codec pq needs the position of every token"
    with pytest.raises(ImpRAGError, match=message):
        build(model, corpus, tmp_path / "half", codec="pq", kv_keep_ratio=0.5)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ImpRAGError, match=message):
        RamStore(untrained_codec("pq", 16), 10**6, 0.5)


def test_a_model_whose_passages_depend_on_each_other_is_refused(corpus, tmp_path) -> None:
    model = tiny_imprag_model(passage_encoding="segmented")
    with pytest.raises(ImpRAGError, match="set passage_encoding to independent"):
        build(model, corpus, tmp_path / "cache")
    with pytest.raises(ImpRAGError, match="segmented"):
        PassageKVCache(model, tiny_tokenizer(), RamStore(untrained_codec("fp32", 16), 1000))


class TestFolder:
    def test_passages_are_found_by_their_text_in_any_corpus(self, corpus, tmp_path) -> None:
        store = build(tiny_imprag_model(), corpus, tmp_path / "cache")
        moved = replace(PASSAGES[4], id="elsewhere", meta={"page": 4})
        edited = replace(PASSAGES[5], text=f"{PASSAGES[5].text} w1")
        between = replace(PASSAGES[6], title=f"{PASSAGES[6].title} w", text=PASSAGES[6].text[1:])
        found = store.get([moved, edited, between, PASSAGES[19]])
        assert [one is not None for one in found] == [True, False, False, True]
        assert store.has([moved, edited, between, PASSAGES[19]]) == [True, False, False, True]
        for one, passage in ((found[0], PASSAGES[4]), (found[3], PASSAGES[19])):
            (own,) = store.get([passage])
            assert_close(one["states"], own["states"], rtol=0, atol=0)

    def test_a_truncated_shard_is_named(self, corpus: Corpus, tmp_path: Path) -> None:
        build(tiny_imprag_model(), corpus, tmp_path / "cache")
        shard = min((tmp_path / "cache").glob("000002-*"))
        shard.write_bytes(shard.read_bytes()[:-10])
        with pytest.raises(ImpRAGError, match=rf"{shard.name} is damaged .* bytes instead of"):
            DiskStore(tmp_path / "cache")

    def test_an_altered_shard_is_found_by_its_checksum(self, corpus, tmp_path: Path) -> None:
        store = build(tiny_imprag_model(), corpus, tmp_path / "cache")
        store.manifest.verify_files(tmp_path / "cache")
        shard = min((tmp_path / "cache").glob("000002-*"))
        content = bytearray(shard.read_bytes())
        content[-5] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ImpRAGError, match="checksum differs"):
            DiskStore(tmp_path / "cache").manifest.verify_files(tmp_path / "cache")

    def test_a_shard_with_a_broken_header_is_named(self, corpus, tmp_path: Path) -> None:
        build(tiny_imprag_model(), corpus, tmp_path / "cache")
        shard = min((tmp_path / "cache").glob("000000-*"))
        shard.write_bytes(b"\xff" * len(shard.read_bytes()))
        with pytest.raises(ImpRAGError, match=f"{shard.name} is damaged"):
            DiskStore(tmp_path / "cache").get([PASSAGES[0]])

    def test_a_broken_manifest_is_named(self, corpus: Corpus, tmp_path: Path) -> None:
        build(tiny_imprag_model(), corpus, tmp_path / "cache")
        manifest = tmp_path / "cache" / "kv_cache.json"
        content = json.loads(manifest.read_text())
        del content["shards"]
        manifest.write_text(json.dumps(content))
        with pytest.raises(ImpRAGError, match="is damaged"):
            DiskStore(tmp_path / "cache")

    def test_a_cache_of_an_earlier_format_is_refused_and_overwritten(
        self, corpus: Corpus, tmp_path: Path
    ) -> None:
        out = tmp_path / "cache"
        build(tiny_imprag_model(), corpus, out)
        manifest = out / "kv_cache.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**content, "format_version": 4}))
        rebuild = f"imprag kv build --model MODEL --index INDEX --out {out} --overwrite"
        with pytest.raises(ImpRAGError, match=f"has format version 4, .*{rebuild}"):
            DiskStore(out)
        build(tiny_imprag_model(), corpus, out, overwrite=True)
        assert DiskStore(out).get([PASSAGES[0]])

    def test_no_cache_is_told_from_an_unfinished_one(self, corpus, tmp_path: Path) -> None:
        with pytest.raises(ImpRAGError, match="imprag kv build"):
            DiskStore(tmp_path / "cache")
        (tmp_path / "cache.building").mkdir()
        with pytest.raises(ImpRAGError, match="not finished"):
            DiskStore(tmp_path / "cache")
