"""Passages and prompts as token ids."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import needs_smollm2, tiny_lm, tiny_tokenizer
from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder, load_base_model
from imprag.model.generate import fixed
from imprag.model.inputs import batches_by_length, pad
from imprag.model.text import passage_tokens, prompt_batch, prompt_tokens


def config(**settings: object) -> ImpRAGConfig:
    return ImpRAGConfig(base_model="tiny", b=1, t=3, **settings)


def words(n: int) -> str:
    return " ".join(f"w{i}" for i in range(n))


def test_passages_are_cut_at_the_end_of_their_text() -> None:
    passage = Passage("1", "w90 w91", words(30))
    tokenizer = tiny_tokenizer()
    end_title = config(max_passage_tokens=16, passage_template="{text} {title}")
    (row,) = passage_tokens(tokenizer, end_title, [passage])
    assert row == [*range(3, 17), 93, 94]
    title_first = config(max_passage_tokens=16, passage_template="{title} {text}")
    (row,) = passage_tokens(tokenizer, title_first, [passage])
    assert row == [93, 94, *range(3, 17)]
    (short,) = passage_tokens(tokenizer, title_first, [Passage("2", "", "w1")])
    assert short == [4]
    assert passage_tokens(tokenizer, title_first, []) == []


def test_prompts_end_with_their_own_last_token() -> None:
    tokenizer = tiny_tokenizer()
    assert prompt_tokens(tokenizer, [" w1 w2 \n"], 10) == [[4, 5]]
    ids, mask = prompt_batch(tokenizer, ["w1 w2 w3", "w4"], 10, torch.device("cpu"))
    assert ids.tolist() == [[4, 5, 6], [0, 0, 7]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["  "], "the prompt is empty"),
        (["w1", ""], "prompt 2 is empty"),
        (["w1 w2 w3 w4"], "the prompt has 4 tokens, but only 3 fit"),
    ],
)
def test_prompts_that_cannot_be_answered(prompts: list[str], message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        prompt_tokens(tiny_tokenizer(), prompts, 3)


def group_cost(lengths: list[int], model: list[list[int]], size: int) -> float:
    return sum(len(group) * max(lengths[i] for i in group) + size / 16 for group in model)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(10, 200))
def test_groups_hold_every_row_once_and_keep_to_their_size(lengths: list[int], size: int) -> None:
    model = batches_by_length(lengths, size)
    assert sorted(i for group in model for i in group) == list(range(len(lengths)))
    for group in model:
        assert len(group) * max(lengths[i] for i in group) <= size or len(group) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(10, 200))
def test_no_other_groups_of_neighbours_cost_less(lengths: list[int], size: int) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        model = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            model.append([i]) if cut else model[-1].append(i)
        if all(len(group) * lengths[group[-1]] <= size or len(group) == 1 for group in model):
            costs.append(group_cost(lengths, model, size))
    assert group_cost(lengths, batches_by_length(lengths, size), size) == pytest.approx(min(costs))


def test_groups_of_like_length() -> None:
    assert batches_by_length([10, 8, 9, 10], 40) == [[1, 2, 0, 3]]
    assert batches_by_length([10, 4, 9, 10], 39) == [[1], [2, 0, 3]]
    assert batches_by_length([10, 30, 10, 30], 80) == [[0, 2], [1, 3]]
    assert batches_by_length([100], 10) == [[0]]
    assert batches_by_length([], 10) == []


def test_encoder_gives_each_passage_its_own_embedding_in_order() -> None:
    model, tokenizer = ImpRAGModel(tiny_lm(), config()), tiny_tokenizer()
    passages = [Passage(str(n), f"w{n}", words(n)) for n in (20, 3, 11, 7, 30, 1)]
    encoder = PassageEncoder(model, tokenizer, batch_tokens=40)
    embeddings = encoder(passages)
    assert embeddings.shape == (6, encoder.dimension)
    assert embeddings.dtype == np.float32
    for passage, embedding in zip(passages, embeddings, strict=True):
        (row,) = passage_tokens(tokenizer, model.config, [passage])
        with torch.no_grad():
            expected = model.passage_embeddings(*pad([row], torch.device("cpu")))[0]
        np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)


def test_encoder_fingerprint_follows_what_decides_embeddings() -> None:
    def fingerprint(seed: int = 0, **settings: object) -> str:
        model = ImpRAGModel(tiny_lm(seed=seed), config(**settings))
        return PassageEncoder(model, tiny_tokenizer()).fingerprint()

    assert fingerprint() == fingerprint(k=3, passage_encoding="full", score_scale=0.5)
    others = [{"seed": 1}, {"max_passage_tokens": 99}, {"passage_template": "{text}"}]
    assert len({fingerprint(), *(fingerprint(**other) for other in others)}) == 4


def test_queries_of_layer_b_have_no_part_in_the_encoders_fingerprint() -> None:
    model = ImpRAGModel(tiny_lm("qwen3"), config())
    encoder = PassageEncoder(model, tiny_tokenizer())
    before = encoder.fingerprint()
    layers = model.lm.base_model.layers
    with torch.no_grad():
        layers[1].self_attn.q_proj.weight += 1
        layers[1].self_attn.q_norm.weight += 1
        assert encoder.fingerprint() == before
        for weight in (layers[1].self_attn.k_proj.weight, layers[0].self_attn.q_proj.weight):
            weight += 1
            assert encoder.fingerprint() != before
            before = encoder.fingerprint()


@needs_smollm2
@pytest.mark.real_model
def test_identity_with_the_plain_model_on_real_weights_and_text() -> None:
    """b=0, t=N-1, full encoding, contiguous positions equal in-context RAG (design's identity)."""
    plain, tokenizer = load_base_model("smollm2-135m", "float32", "cpu")
    lm, _ = load_base_model("smollm2-135m", "float32", "cpu")
    settings = ImpRAGConfig(base_model="smollm2-135m", b=0, t=29, passage_encoding="full")
    model = ImpRAGModel(lm, settings)
    passages = [
        Passage("1", "Chad", "The capital of Chad is N'Djamena, a city on the Chari river."),
        Passage("2", "Mali", "The capital of Mali is Bamako, on the Niger river."),
    ]
    rows = passage_tokens(tokenizer, settings, passages)
    (prompt,) = prompt_tokens(tokenizer, ["In short, the capital of Chad is"], 100)
    context = [token for row in rows for token in row]
    ids, mask = pad([prompt], model.device)
    with torch.no_grad():
        prefix = model.encode_passages([rows])
        expected = plain(torch.tensor([context + prompt])).logits[0, -len(prompt) :]
        actual = model(ids, mask, fixed(prefix), position_shift=len(context)).logits[0]
        assert expected.abs().max() > 10
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        greedy = {"max_new_tokens": 16, "do_sample": False}
        expected_tokens = plain.generate(torch.tensor([context + prompt]), **greedy)[0]
        actual_tokens = model.generate(
            ids, mask, fixed(prefix), position_shift=len(context), **greedy
        )[0]
    answer = actual_tokens[len(prompt) :]
    assert answer.tolist() == expected_tokens[len(context + prompt) :].tolist()
    assert "N'Djamena" in tokenizer.decode(answer)
