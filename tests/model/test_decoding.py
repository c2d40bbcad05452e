"""Decoding with rows that join and leave: the same tokens as every prompt alone."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from conftest import tiny_lm
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.decoding import DecodingBatch, decode, decoding_config, prefill
from imprag.model.generate import PromptTokens, fixed, generate
from imprag.model.inputs import pad
from imprag.model.kv import PassageKV, RowKV, score_bias
from imprag.model.query import Queries, queries

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
PASSAGES = [[[20, 21, 22], [23, 24]], [], [[25, 26, 27, 28]], [[20, 21, 22]]]
SHIFT = 40


def tiny_model(family: str) -> ImpRAGModel:
    bias = {} if family == "gemma2" else {"attention_score_bias": 2.0}
    return ImpRAGModel(tiny_lm(family), ImpRAGConfig(base_model=family, b=1, t=3, **bias))


def passage_kv(model: ImpRAGModel, prompt: int) -> Any:
    kv = model.encode_passages([PASSAGES[prompt]])
    scores = [0.3 * n for n in range(len(PASSAGES[prompt]))]
    weight = model.config.attention_score_bias
    return replace(kv, passage_bias=[score_bias(scores, weight)]) if weight and scores else kv


def alone(model: ImpRAGModel, prompt: int, new: int) -> list[int]:
    """The greedy tokens by Hugging Face ``generate``."""
    ids = torch.tensor([PROMPTS[prompt]])
    kv = passage_kv(model, prompt)
    prompts = PromptTokens(ids, torch.ones_like(ids), SHIFT)
    arguments = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
    output = generate(model.decoder, lambda queries: kv, prompts, arguments)
    return output[0, ids.shape[1] :].tolist()


def prefilled(model: ImpRAGModel, prompts: list[int]) -> Any:
    ids, mask = pad([PROMPTS[n] for n in prompts], model.device, left=True)
    kv = RowKV([passage_kv(model, n) for n in prompts])
    return prefill(model.decoder, lambda queries: kv, PromptTokens(ids, mask, SHIFT))


@torch.inference_mode()
def test_rows_that_join_and_leave_get_the_tokens_of_generate(family: str) -> None:
    model = tiny_model(family)
    batch, order = DecodingBatch(model.decoder), []
    answers: dict[int, list[int]] = {}

    def join(*prompts: int) -> None:
        for prompt, row in zip(prompts, prefilled(model, list(prompts)), strict=True):
            answers[prompt] = [int(row.logits.argmax())]
            order.append(prompt)
            batch.join([row])

    def step() -> None:
        logits = batch.step([answers[prompt][-1] for prompt in order])
        for prompt, token in zip(order, logits.argmax(-1).tolist(), strict=True):
            answers[prompt].append(token)

    def leave(prompt: int) -> None:
        batch.keep([n for n, one in enumerate(order) if one != prompt])
        order.remove(prompt)

    join(0, 1)
    step()
    step()
    join(2)  # longer than all before
    step()
    leave(0)
    step()
    join(3)
    for _ in range(70):  # past the room of a cache
        step()
    leave(2)  # the longest
    step()
    leave(1)
    leave(3)
    assert len(batch) == 0
    join(0)
    step()
    assert answers[0] == alone(model, 0, 2)
    for prompt in (1, 2, 3):
        assert answers[prompt] == alone(model, prompt, len(answers[prompt]))


@torch.inference_mode()
def test_logits_are_those_of_the_whole_sequence(family: str) -> None:
    """A step gives the logits of one pass over prompt and answer."""
    model = tiny_model(family)
    batch = DecodingBatch(model.decoder)
    batch.join(prefilled(model, [2, 0]))
    for token in (30, 31, 32):
        logits = batch.step([token, token + 3])
    for n, prompt in enumerate((2, 0)):
        ids = torch.tensor([[*PROMPTS[prompt], 30 + 3 * n, 31 + 3 * n, 32 + 3 * n]])
        kv = passage_kv(model, prompt)
        query = torch.tensor([len(PROMPTS[prompt]) - 1])
        whole = model(
            ids,
            torch.ones_like(ids),
            lambda queries, kv=kv: kv,
            position_shift=SHIFT,
            query_tokens=query,
        )
        torch.testing.assert_close(logits[n], whole.logits[0, -1], atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_rows_may_share_passage_states() -> None:
    model = tiny_model("llama")
    (row,) = prefilled(model, [0])
    batch = DecodingBatch(model.decoder)
    batch.join([row, row])
    logits = batch.step([30, 30])
    torch.testing.assert_close(logits[0], logits[1])


def test_a_batch_without_rows_has_no_length() -> None:
    model = tiny_model("llama")
    batch = DecodingBatch(model.decoder)
    batch.join(prefilled(model, [0]))
    batch.keep([])
    assert len(batch) == 0
    batch.join(prefilled(model, [1]))
    assert len(batch) == 1


@pytest.mark.parametrize("prompts", [[0, 1, 2, 3], [1]])
def test_prefill_counts_positions_without_the_padding(prompts: list[int]) -> None:
    rows = prefilled(tiny_model("llama"), prompts)
    assert [row.position for row in rows] == [SHIFT + len(PROMPTS[n]) for n in prompts]
    assert [row.tokens for row in rows] == [len(PROMPTS[n]) for n in prompts]


class Streamed(BaseStreamer):
    def __init__(self) -> None:
        self.put_tokens: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.put_tokens.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


class AfterFour(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= 10 + torch.arange(len(input_ids))


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"eos_token_id": [30, 31, *range(60, 97)], "pad_token_id": 1},
    {"eos_token_id": 40, "pad_token_id": None},
    {"do_sample": True},
    {"do_sample": True, "temperature": 2.0, "top_k": 7, "top_p": 0.8},
    {"do_sample": True, "top_k": 0, "eos_token_id": list(range(20, 60))},
    {"logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([*range(50)])])},
    {"stopping_criteria": StoppingCriteriaList([AfterFour()])},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("prompts", [[2], [0, 1, 2, 3]])
def test_decoding_makes_the_tokens_of_generate(
    arguments: dict[str, Any], prompts: list[int]
) -> None:
    model = tiny_model("llama")
    ids, mask = pad([PROMPTS[n] for n in prompts], model.device, left=True)
    kv = model.encode_passages([PASSAGES[n] for n in prompts])
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **arguments}
    assert decoding_config(model.lm, asked) is not None
    results = []
    for make in (
        lambda: model.generate(ids, mask, fixed(kv), position_shift=SHIFT, **asked),
        lambda: generate(model.decoder, fixed(kv), PromptTokens(ids, mask, SHIFT), asked),
    ):
        torch.manual_seed(3)
        results.append(make().tolist())
    assert results[0] == results[1]


def test_decoding_makes_the_tokens_of_generate_in_every_family(family: str) -> None:
    model = tiny_model(family)
    ids, mask = pad(PROMPTS, model.device, left=True)
    kv = model.encode_passages(PASSAGES)
    prompts = PromptTokens(ids, mask, SHIFT)
    asked = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    config = decoding_config(model.lm, asked)
    assert config is not None
    made = decode(model.decoder, fixed(kv), prompts, config)
    assert made.tolist() == generate(model.decoder, fixed(kv), prompts, asked).tolist()


def test_tokens_are_streamed_as_by_generate() -> None:
    model = tiny_model("llama")
    kv = passage_kv(model, 0)
    prompts = PromptTokens(torch.tensor([PROMPTS[0]]), torch.ones(1, 3, dtype=torch.long), SHIFT)
    streams = []
    for make in (model.generate, None):
        stream = Streamed()
        asked = {"max_new_tokens": 5, "do_sample": False, "streamer": stream}
        if make is None:
            generate(model.decoder, fixed(kv), prompts, asked)
        else:
            make(
                prompts.input_ids, prompts.attention_mask, fixed(kv), position_shift=SHIFT, **asked
            )
        assert stream.ended
        streams.append(stream.put_tokens)
    assert streams[0] == streams[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 2},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 2},
        {"return_dict_in_generate": True},
        {"num_return_sequences": 2},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [1]},
        {"cache_implementation": "static"},
        {"generation_config": GenerationConfig(max_new_tokens=3)},
        {"max_new_tokens": None},
    ],
)
def test_what_decoding_does_not_do_is_left_to_generate(arguments: dict[str, Any]) -> None:
    assert decoding_config(tiny_lm("llama"), {"max_new_tokens": 3, **arguments}) is None


def test_a_model_with_penalties_of_its_own_is_left_to_generate() -> None:
    lm = tiny_lm("llama")
    lm.generation_config.repetition_penalty = 1.2
    assert decoding_config(lm, {"max_new_tokens": 3}) is None


@torch.inference_mode()
def test_a_row_that_retrieves_again_equals_one_pass_with_windows(family: str) -> None:
    model = ImpRAGModel(tiny_lm(family), ImpRAGConfig(base_model=family, b=2, t=4))
    texts = [[5, 6, 7, 30, 31, 32, 33], [9, 10, 11, 12, 40, 41, 42, 43]]
    lengths, asks = [3, 4], [2, None]  # of the prompts; the new token that retrieves
    first = [model.encode_passages([[[20, 21, 22], [23, 24]]]), model.encode_passages([[[25, 26]]])]
    second = model.encode_passages([[[27, 28, 29]]])
    prompts = [text[:n] for text, n in zip(texts, lengths, strict=True)]
    ids, mask = pad(prompts, model.device, left=True)
    rows = prefill(model.decoder, lambda queries: RowKV(first), PromptTokens(ids, mask, SHIFT))
    batch = DecodingBatch(model.decoder)
    batch.join(rows)
    asked: list[Queries] = []

    def retrieve(numbers: Any, query: Queries, read: Any) -> list[PassageKV]:
        assert numbers == [0]
        assert read[0].lengths == first[0].lengths
        asked.append(Queries(query.embeddings, cache(query.token_attention)))
        asked[-1].token_attention()
        return [PassageKV.beside([first[0], second])]

    logits = [[row.logits] for row in rows]
    for step in range(4):
        tokens = [text[n + step] for text, n in zip(texts, lengths, strict=True)]
        due = [row for row, ask in enumerate(asks) if ask == step]
        for own, new in zip(logits, batch.step(tokens, (due, retrieve)), strict=True):
            own.append(new)
    for row, text in enumerate(texts):
        whole, ones = pad([text], model.device)
        kv = first[row]
        if row == 0:
            start = lengths[0] + 2
            windows = [[(0, 99), (0, 99), (start, 99)]]
            kv = replace(PassageKV.beside([first[0], second]), windows=windows)
            expected = queries(model.decoder, whole[:, : start + 1], ones[:, : start + 1])
            torch.testing.assert_close(
                asked[0].embeddings, expected.embeddings, rtol=1e-4, atol=1e-4
            )
            attention = asked[0].token_attention()
            assert attention[:, : attention.shape[1] - start - 1].sum() == 0  # padding
            torch.testing.assert_close(
                attention[:, -start - 1 :], expected.token_attention(), rtol=1e-4, atol=1e-5
            )
        output = model(whole, ones, fixed(kv), position_shift=SHIFT).logits[0, lengths[row] - 1 :]
        torch.testing.assert_close(torch.stack(logits[row]), output, rtol=1e-3, atol=1e-3)
    assert len(asked) == 1
