"""The shares of passages: equal to explicit softmax weights, in every way of generating."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from conftest import needs_smollm2, tiny_lm
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.attention import causal_mask
from imprag.model.attribution import Attribution, ReadingShares, attribute, token_spans
from imprag.model.base import load_tokenizer
from imprag.model.decoding import DecodingBatch, decode, prefill
from imprag.model.generate import PromptTokens, generate
from imprag.model.hooks import LayerWrapper, attention_of
from imprag.model.inputs import pad
from imprag.model.kv import PassageKV, RowKV, score_bias

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
PASSAGES = [[[20, 21, 22], [23, 24]], [], [[25, 26, 27, 28]], [[20, 21, 22], [29], [30, 31]]]
SHIFT = 40
NEW = 5
B, T = 1, 3


def tiny_model(family: str = "llama", **settings: Any) -> ImpRAGModel:
    settings.setdefault("attention_score_bias", 0.0 if family == "gemma2" else 2.0)
    return ImpRAGModel(tiny_lm(family), ImpRAGConfig(base_model=family, b=B, t=T, **settings))


def passage_kv(model: ImpRAGModel, *prompts: int) -> PassageKV:
    kv = model.encode_passages([PASSAGES[n] for n in prompts])
    weight = model.config.attention_score_bias
    if not weight:
        return kv
    scores = [[0.3 * i for i in range(len(PASSAGES[n]))] for n in prompts]
    return replace(kv, passage_bias=[score_bias(row, weight) for row in scores])


def explicit_softmax(
    weights_of: dict[int, Tensor],
    kv: PassageKV,
    layer: int,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one row in float64, one head and one query at a time; keeps all weights."""
    heads, queries, size = query.shape[1:]
    own, read = key.shape[2], kv.keys[layer].shape[2]
    scaling = size**-0.5 if scaling is None else scaling
    keys = torch.cat([kv.keys[layer], key], 2)[0].double()
    values = torch.cat([kv.values[layer], value], 2)[0].double()
    seen = causal_mask(queries, own, query.device) if mask is None else mask
    bias = torch.zeros(read) if kv.bias is None else kv.bias[0]
    weights = torch.zeros(heads, queries, read + own, dtype=torch.float64)
    output = torch.zeros(1, queries, heads, size, dtype=torch.float64)
    for head in range(heads):
        group = head // (heads // keys.shape[0])
        for n in range(queries):
            logits = []
            for m in range(read + own):
                logit = float(query[0, head, n].double() @ keys[group, m]) * scaling
                if softcap is not None:
                    logit = math.tanh(logit / softcap) * softcap
                if m < read:
                    logit += float(bias[m])
                elif not seen[0, 0, n, m - read]:
                    logit = -math.inf
                logits.append(logit)
            exps = [math.exp(logit - max(logits)) for logit in logits]
            weights[head, n] = torch.tensor([one / sum(exps) for one in exps])
            output[0, n, head] = weights[head, n] @ values[group]
    weights_of[layer] = weights
    return output.to(query.dtype), None


def reference(model: ImpRAGModel, prompt: int, answer: list[int]) -> list[list[float]]:
    """The shares of each answer token's passages, from all weights of one pass over the text."""
    kv, weights = passage_kv(model, prompt), dict[int, Tensor]()
    wrappers = {
        layer: LayerWrapper(
            model.decoder.layer(layer), attend=partial(explicit_softmax, weights, kv, layer)
        )
        for layer in range(B, T + 1)
    }
    ids = torch.tensor([PROMPTS[prompt] + answer[:-1]])
    inputs = PromptTokens(ids, torch.ones_like(ids), SHIFT).model_inputs(model.decoder)
    with torch.no_grad():
        model.decoder.lm_view(wrappers)(**inputs, use_cache=False)
    shares = []
    for n in range(len(answer)):
        query, start, row = len(PROMPTS[prompt]) - 1 + n, 0, []
        for passage in PASSAGES[prompt]:
            masses = [w[:, query, start : start + len(passage)].sum(-1) for w in weights.values()]
            row.append(float(torch.stack(masses).mean()))
            start += len(passage)
        shares.append(row)
    return shares


def left_padded(model: ImpRAGModel, prompts: list[int]) -> PromptTokens:
    return PromptTokens(*pad([PROMPTS[n] for n in prompts], model.device, left=True), SHIFT)


def by_generate(model: ImpRAGModel, prompts: list[int], **arguments: Any) -> Any:
    """Answers and shares of each prompt, by ``generate``."""
    shares = ReadingShares(model.decoder)
    inputs = left_padded(model, prompts)
    kv = passage_kv(model, *prompts)
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **arguments}
    with torch.inference_mode():
        output = generate(model.decoder, lambda queries: kv, inputs, given, shares)
    return answers_of(output, inputs, shares, prompts)


def answers_of(output: Tensor, inputs: PromptTokens, shares: ReadingShares, prompts: Any) -> Any:
    new = output[:, inputs.input_ids.shape[1] :].tolist()
    return [
        (answer, shares_of(shares, row, n))
        for row, (n, answer) in enumerate(zip(prompts, new, strict=True))
    ]


def shares_of(shares: ReadingShares, row: int, prompt: int) -> list[list[float]]:
    """The shares of a prompt's passages; the row has none of the others of its batch."""
    passages = len(PASSAGES[prompt])
    assert not any(any(one[passages:]) for one in shares.of_row(row))
    return [one[:passages] for one in shares.of_row(row)]


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_shares_of_generate_equal_explicit_softmax_weights(family: str, cache: str) -> None:
    model = tiny_model(family)
    arguments = {"cache_implementation": "static"} if cache == "static" else {}
    for n, (answer, shares) in enumerate(by_generate(model, [0, 1, 2, 3], **arguments)):
        assert_close(shares, reference(model, n, answer))
        assert all(sum(row) < 1 for row in shares)
        assert PASSAGES[n] == [] or all(min(row) > 0 for row in shares)


def test_shares_of_decode_equal_explicit_softmax_weights(family: str) -> None:
    model = tiny_model(family)
    prompts = [3, 0, 2, 1]
    shares, inputs = ReadingShares(model.decoder), left_padded(model, prompts)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False)
    kv = passage_kv(model, *prompts)
    output = decode(model.decoder, lambda queries: kv, inputs, config, shares=shares)
    for n, (answer, found) in zip(
        prompts, answers_of(output, inputs, shares, prompts), strict=True
    ):
        assert_close(found, reference(model, n, answer))


def test_shares_without_a_score_bias_equal_explicit_softmax_weights() -> None:
    model = tiny_model(attention_score_bias=0.0)
    for n, (answer, shares) in enumerate(by_generate(model, [0, 1, 2, 3])):
        assert_close(shares, reference(model, n, answer))


def test_passages_that_are_encoded_as_one_sequence_have_shares_of_their_own() -> None:
    model = tiny_model(attention_score_bias=0.0, passage_encoding="full")
    for n, (answer, shares) in enumerate(by_generate(model, [0, 1, 2, 3])):
        assert_close(shares, reference(model, n, answer))


@torch.inference_mode()
def test_rows_that_join_and_leave_have_the_shares_of_their_prompt(family: str) -> None:
    model = tiny_model(family)
    batch, order = DecodingBatch(model.decoder), list[int]()
    answers: dict[int, list[int]] = {}
    found: dict[int, list[list[float]]] = {}

    def join(*prompts: int) -> None:
        shares = ReadingShares(model.decoder)
        kv = RowKV([passage_kv(model, n) for n in prompts])
        rows = prefill(model.decoder, lambda queries: kv, left_padded(model, list(prompts)), shares)
        batch.join(rows)
        for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            answers[prompt] = [int(row.logits.argmax())]
            found[prompt] = shares_of(shares, n, prompt)
            order.append(prompt)

    def step() -> None:
        shares = ReadingShares(model.decoder)
        logits = batch.step([answers[prompt][-1] for prompt in order], shares=shares)
        for n, (prompt, token) in enumerate(zip(order, logits.argmax(-1).tolist(), strict=True)):
            answers[prompt].append(token)
            found[prompt] += shares_of(shares, n, prompt)

    join(0, 1)
    step()
    join(2)
    step()
    batch.keep([1, 2])
    del order[0]
    join(3)
    step()
    for prompt in (0, 1, 2, 3):
        assert_close(found[prompt], reference(model, prompt, answers[prompt]))


def test_a_prompt_longer_than_a_block_of_queries_has_the_shares_of_its_last_token() -> None:
    model = tiny_model()
    query, key, value = (
        torch.randn(
            2, heads, 1100, model.decoder.head_dim, generator=torch.Generator().manual_seed(n)
        )
        for n, heads in enumerate((6, 2, 2))
    )
    kv, noted = passage_kv(model, 0, 3), list[Tensor]()
    module = attention_of(model.decoder.layer(B))
    with torch.no_grad():
        kv.attend(B, module, query, key, value, None, note=noted.append)
        kv.attend(B, module, query[:, :, -1:], key, value, None, note=noted.append)
    torch.testing.assert_close(*noted)


def test_fused_kernels_get_the_shares_of_their_last_query() -> None:
    """With gradients, and on a GPU, PyTorch's own kernel computes the attention."""
    model = tiny_model(attention_score_bias=0.0)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 7, model.decoder.head_dim, generator=generator) for heads in (6, 2, 2)
    )
    mask = causal_mask(7, 7, query.device).expand(2, 1, 7, 7).clone()
    mask[0, :, :, :3] = False  # padding on the left
    kv, module = passage_kv(model, 0, 3), attention_of(model.decoder.layer(B))
    for seen in (None, mask):
        noted: list[Tensor] = []
        with torch.enable_grad():
            kv.attend(B, module, query, key, value, seen, note=noted.append)
        with torch.no_grad():
            kv.attend(B, module, query, key, value, seen, note=noted.append)
        torch.testing.assert_close(*noted)


def test_shares_change_no_token_and_no_logit() -> None:
    model = tiny_model()
    inputs, kv = left_padded(model, [0, 1, 2, 3]), passage_kv(model, 0, 1, 2, 3)

    def run(shares: ReadingShares | None) -> Any:
        return model.generate(
            *inputs[:2],
            lambda queries: kv,
            position_shift=SHIFT,
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            shares=shares,
        )

    without, with_shares = run(None), run(ReadingShares(model.decoder))
    assert torch.equal(without.sequences, with_shares.sequences)
    for one, other in zip(without.logits, with_shares.logits, strict=True):
        assert torch.equal(one, other)


def test_compiled_decoding_makes_room_for_plain_code() -> None:
    model = tiny_model()
    plain = by_generate(model, [0])
    model.compile_decoding()
    inputs, shares = left_padded(model, [0]), ReadingShares(model.decoder)
    output = model.generate(
        *inputs[:2],
        lambda queries: passage_kv(model, 0),
        position_shift=SHIFT,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        shares=shares,
    )
    ((answer, found),) = answers_of(output, inputs, shares, [0])
    assert answer == plain[0][0]
    assert_close(found, plain[0][1])


def test_beam_search_is_refused_in_one_line() -> None:
    model = tiny_model()
    inputs = left_padded(model, [0])
    for arguments in ({"num_beams": 2}, {"generation_config": GenerationConfig(num_beams=3)}):
        with pytest.raises(ImpRAGError, match=r"^num_beams is \d, .* set num_beams to 1$"):
            model.generate(
                *inputs[:2],
                lambda queries: passage_kv(model, 0),
                position_shift=SHIFT,
                shares=ReadingShares(model.decoder),
                **arguments,
            )


class Utf8:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("decoded", "text", "expected"),
    [
        ("ab c", "ab c", ["a", "b", " ", "c"]),
        ("  ab\ncd", "ab", ["a", "b"]),
        (" é€x. ", "é€x.", ["é", "é", "€", "€", "€", "x", "."]),
        ("aSTOPb", "a", ["a"]),
        (" \n ", "", []),
    ],
)
def test_tokens_are_those_of_the_answers_text(decoded: str, text: str, expected: list[str]) -> None:
    tokens = list(decoded.encode())
    shares = [[0.1 * n, 0.0] for n in range(len(tokens))]
    found = attribute(token_spans(Utf8(), tokens, text), shares, text, 2)
    assert [one.text for one in found.tokens] == expected
    assert all(text[one.start : one.end] == one.text for one in found.tokens)
    first = decoded.encode().index(text.encode()) if text else 0
    own = [row[0] for row in shares[first : first + len(expected)]]
    assert found.shares[0] == pytest.approx(sum(own) / max(len(own), 1))


def test_spans_of_a_long_answer_decode_each_token_a_few_times() -> None:
    class Counting(Utf8):
        decoded = 0

        def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
            self.decoded += len(tokens)
            return super().decode(tokens, skip_special_tokens=skip_special_tokens)

    text = "naïve 日本 🐈 " * 40
    tokens, tokenizer = list(f"  {text}".encode()), Counting()
    spans = token_spans(tokenizer, tokens, text.strip())
    assert [text[start:end] for start, end in spans if start < end] == [
        character for character in text.strip() for _ in character.encode()
    ]
    assert tokenizer.decoded < 12 * len(tokens)


@needs_smollm2
def test_spans_are_those_of_texts_decoded_from_the_start() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    text = "Ürümqi’s “café” costs 10 € ;  naïve\tيوم 日本語 🐈‍⬛ end."
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = token_spans(tokenizer, [*tokens, tokenizer.eos_token_id], text)
    ends = [len(tokenizer.decode(tokens[:n]).rstrip("\ufffd")) for n in range(1, len(tokens) + 1)]
    whole = [n for n in range(len(tokens)) if tokenizer.decode(tokens[: n + 1])[-1] != "\ufffd"]
    assert [spans[n][1] for n in whole] == [ends[n] for n in whole]
    assert spans[-1] == (0, 0)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.1, 0.3, 0.0], [1]),
        ([0.2, 0.1, 0.15], [0, 2]),
        ([0.1, 0.1], [0]),
        ([0.0, 0.0], []),
        ([], []),
    ],
)
def test_the_fewest_passages_with_half_of_the_attention_carried_the_answer(
    shares: list[float], expected: list[int]
) -> None:
    found = Attribution(shares, [])
    assert found.carried_by == expected
    assert found.own == pytest.approx(1 - sum(shares))
