"""The model pieces against references: the plain LM, the paper's formulas, one row at a time."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import tiny_lm
from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.model.generate import compile_config, fixed
from imprag.model.inputs import pad
from imprag.model.kv import EncodedPassages, PassageKV, score_bias
from imprag.model.model import ImpRAGModel
from imprag.model.query import Queries, query_embeddings_of, query_inputs

CPU = torch.device("cpu")


def model_of(family: str = "llama", *, layers: int = 6, **settings: object) -> ImpRAGModel:
    values = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, **settings}
    return ImpRAGModel(tiny_lm(family, layers), ImpRAGConfig(base_model=family, **values))


def tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def read(model: ImpRAGModel, prompts: list[list[int]], passages: list[list[list[int]]], **kw):
    """Logits of each prompt's own tokens, one tensor per prompt."""
    ids, mask = pad(prompts, CPU, left=True)
    shift = torch.tensor([len(p) * model.config.max_passage_tokens for p in passages])
    output = model(ids, mask, fixed(model.encode_passages(passages, **kw)), position_shift=shift)
    return [row[-len(prompt) :] for row, prompt in zip(output.logits, prompts, strict=True)]


@torch.no_grad()
def test_reading_everything_is_in_context_rag(family: str) -> None:
    """b=0, t=N-1, full encoding, contiguous positions: the plain LM on the concatenated text."""
    layers = 4
    plain = tiny_lm(family, layers)
    model = model_of(family, layers=layers, b=0, t=layers - 1)
    passages, (prompt,) = tokens(9, 5, 12), tokens(7, seed=1)
    context = [token for passage in passages for token in passage]
    expected = plain(torch.tensor([context + prompt])).logits[0, -len(prompt) :]
    ids, mask = pad([prompt], CPU)
    prefix = model.encode_passages([passages], "full")
    actual = model(ids, mask, fixed(prefix), position_shift=len(context)).logits[0]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected_tokens = plain.generate(torch.tensor([context + prompt]), **greedy)
    actual_tokens = model.generate(ids, mask, fixed(prefix), position_shift=len(context), **greedy)
    assert actual_tokens[0, len(prompt) :].tolist() == expected_tokens[0, -12:].tolist()


@torch.no_grad()
def hidden_states(model: ImpRAGModel, prompt: list[int], passages: list[list[int]]) -> list[Tensor]:
    """The prompt's states after every layer."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda m, args, out: seen.append(out))
        for layer in model.lm.base_model.layers
    ]
    prefix = model.encode_passages([passages])
    seen.clear()
    ids, mask = pad([prompt], CPU)
    model(ids, mask, fixed(prefix), position_shift=len(passages) * 16)
    for handle in handles:
        handle.remove()
    # The one token that layer b is run on for the implicit query comes before its whole run.
    return [state for state in seen if state.shape[1] == len(prompt)]


@pytest.mark.parametrize("encoding", ["independent", "segmented", "full"])
def test_every_passage_token_reaches_every_prompt_token_in_layers_b_to_t(encoding: str) -> None:
    model = model_of(b=2, t=3, passage_encoding=encoding)
    passages, (prompt,) = tokens(5, 7), tokens(6, seed=1)
    before = hidden_states(model, prompt, passages)
    assert len(before) == 6
    for passage in range(2):
        for token in range(len(passages[passage])):
            changed = [list(p) for p in passages]
            changed[passage][token] = 3 + (changed[passage][token] - 2) % 94
            after = hidden_states(model, prompt, changed)
            moved = [(a - b).abs().amax(dim=-1)[0] for a, b in zip(after, before, strict=True)]
            assert all(torch.all(m == 0) for m in moved[:2])
            assert all(torch.all(m > 0) for m in moved[2:4])


@torch.no_grad()
def test_states_encoded_apart_are_concatenated() -> None:
    model, passages = model_of(), tokens(4, 9, 6, 2)
    apart = (passages[:1], passages[1:3], passages[3:])
    parts = [model.encode(*pad(rows, CPU), with_attention=True) for rows in apart]
    joined = EncodedPassages.concatenate(parts)
    whole = model.encode(*pad(passages, CPU), with_attention=True)
    assert joined.mask.equal(whole.mask)
    torch.testing.assert_close(joined.embeddings, whole.embeddings)
    assignment = [[3, 0], [], [2, 1, 0]]
    read, expected = joined.for_prompts(assignment), whole.for_prompts(assignment)
    assert read.mask.equal(expected.mask)
    for layer in (1, 2, 3):
        assert joined.keys[layer].shape == whole.keys[layer].shape
        tokens_of = whole.mask[:, None]
        torch.testing.assert_close(
            joined.attention[layer] * tokens_of, whole.attention[layer] * tokens_of
        )
        mask = read.mask[:, None, :, None]
        torch.testing.assert_close(read.keys[layer] * mask, expected.keys[layer] * mask)
        torch.testing.assert_close(read.values[layer] * mask, expected.values[layer] * mask)


@torch.no_grad()
def test_layers_above_t_do_not_see_passages() -> None:
    """Given the same states after layer t, passages or none make no difference above it."""
    model = model_of(b=1, t=3)
    passages, (prompt,) = tokens(5, 7), tokens(6, seed=1)
    reading = hidden_states(model, prompt, passages)
    layers = model.lm.base_model.layers
    state = reading[3]
    length = state.shape[1]
    position_ids = torch.arange(length)[None] + 32
    rotary = model.lm.base_model.rotary_emb(state, position_ids=position_ids)
    for layer, expected in zip(layers[4:], reading[4:], strict=True):
        state = layer(state, attention_mask=None, position_embeddings=rotary)
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("encoding", ["independent", "segmented", "full"])
def test_what_passages_see_of_each_other(encoding: str) -> None:
    model = model_of(passage_encoding=encoding)
    passages = tokens(5, 7, 6)
    before = model.encode_passages([passages])
    other = [tokens(5, seed=9)[0], *passages[1:]]
    after = model.encode_passages([other])
    # The first reading layer's keys come from layer b-1's output, where mixing shows.
    later = slice(5, None)
    same = torch.equal(before.values[3][:, :, later], after.values[3][:, :, later])
    assert same == (encoding != "full")


@torch.no_grad()
def test_independent_passages_start_at_position_zero_and_segmented_ones_run_on() -> None:
    model = model_of(b=0)
    first, second = tokens(5, 7)
    alone = model.encode_passages([[second]], "independent").keys[2]
    independent = model.encode_passages([[first, second]], "independent").keys[2][:, :, 5:]
    segmented = model.encode_passages([[first, second]], "segmented").keys[2][:, :, 5:]
    torch.testing.assert_close(independent, alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(segmented, alone, atol=1e-3)
    ids, mask = pad([second], CPU)
    moved = model.encode(ids, mask, 5).keys[2]
    torch.testing.assert_close(segmented, moved, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoding", "starts"),
    [("independent", [0, 0, 0, 0, 0, 0]), ("segmented", [0, 90, 94, 174, 177, 267])],
)
def test_passages_encoded_in_groups_of_like_length_equal_one_batch(
    encoding: str, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    passages = tokens(90, 4, 80, 3, 90, 5)
    expected = model.encode(*pad(passages, CPU), torch.tensor(starts)).for_prompts([list(range(6))])
    sizes = []
    encode = ImpRAGModel.encode

    def counted(self: ImpRAGModel, ids: Tensor, *others: Tensor, **kw: bool) -> EncodedPassages:
        sizes.append(tuple(ids.shape))
        return encode(self, ids, *others, **kw)

    monkeypatch.setattr(ImpRAGModel, "encode", counted)
    found = model.encode_passages([passages], encoding)
    assert sorted(sizes) == [(3, 5), (3, 90)]
    assert found.lengths == expected.lengths
    torch.testing.assert_close(found.keys, expected.keys, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.values, expected.values, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("encoding", ["independent", "segmented", "full"])
def test_batch_equals_its_rows(family: str, encoding: str) -> None:
    """Prompts of different length with different passages, and one without any."""
    model = model_of(family, passage_encoding=encoding)
    prompts = tokens(4, 9, 1, 6, seed=1)
    a, b, c = tokens(8, 5, 11)
    passages = [[a, b], [b], [], [c, a, b]]
    together = read(model, prompts, passages)
    for prompt, own, logits in zip(prompts, passages, together, strict=True):
        torch.testing.assert_close(logits, read(model, [prompt], [own])[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_decoding_equals_one_uncached_pass(family: str) -> None:
    model = model_of(family)
    prompts, passages = tokens(4, 9, seed=1), [tokens(8, 5), tokens(7, seed=2)]
    ids, mask = pad(prompts, CPU, left=True)
    prefix = model.encode_passages(passages)
    shift = torch.tensor([32, 16])
    output = model.generate(
        ids,
        mask,
        fixed(prefix),
        position_shift=shift,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    step_logits = torch.stack(output.logits, dim=1)
    whole_mask = torch.cat([mask, torch.ones(2, 8, dtype=mask.dtype)], dim=1)
    whole = model(output.sequences, whole_mask, fixed(prefix), position_shift=shift).logits
    torch.testing.assert_close(step_logits, whole[:, -9:-1], atol=2e-5, rtol=1e-5)


def test_one_pass_of_the_prompt_and_one_retrieval() -> None:
    """Layers 0..b run once over the prompt; beams ask for their prompt once."""
    model = model_of(b=2)
    prompts, passages = tokens(4, 9, seed=1), [tokens(8, 5), tokens(7, seed=2)]
    ids, mask = pad(prompts, CPU, left=True)
    runs: list[tuple[int, int]] = []
    for number, layer in enumerate(model.lm.base_model.layers):
        layer.register_forward_hook(
            lambda m, args, out, number=number: runs.append((number, args[0].shape[1]))
        )
    asked: list[Tensor] = []

    def retrieve(queries: Queries):
        asked.append(queries.embeddings)
        assert [layer for layer, length in runs if length == 9] == [0, 1]
        prefix = model.encode_passages(passages)
        runs.clear()
        return prefix

    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    shift = torch.tensor([32, 16])
    greedy = model.generate(ids, mask, retrieve, position_shift=shift, **settings)
    assert [layer for layer, length in runs if length == 9] == [2, 3, 4, 5]
    assert len(asked) == 1
    torch.testing.assert_close(asked[0], model.query_embeddings(ids, mask), atol=1e-6, rtol=1e-5)

    runs.clear()
    beams = model.generate(ids, mask, retrieve, position_shift=shift, num_beams=3, **settings)
    assert len(asked) == 2
    assert asked[1].shape == asked[0].shape
    assert greedy.shape == beams.shape == (2, 12)


@torch.no_grad()
def test_beams_equal_the_plain_models_beams() -> None:
    plain = tiny_lm(layers=4)
    model = model_of(layers=4, b=0, t=3)
    passages, (prompt,) = tokens(9, 5), tokens(7, seed=1)
    context = [token for passage in passages for token in passage]
    settings = {"max_new_tokens": 6, "num_beams": 4, "do_sample": False, "eos_token_id": None}
    expected = plain.generate(torch.tensor([context + prompt]), **settings)
    ids, mask = pad([prompt], CPU)
    prefix = model.encode_passages([passages], "full")
    actual = model.generate(ids, mask, fixed(prefix), position_shift=len(context), **settings)
    assert actual[0, -6:].tolist() == expected[0, -6:].tolist()


@torch.no_grad()
def test_a_static_cache_gives_the_same_tokens() -> None:
    """It has room for more keys than there are prompt tokens."""
    model = model_of(layers=6, b=2, t=4)
    ids, mask = pad(tokens(7, 4, seed=1), CPU, left=True)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "position_shift": 16}
    for passages in ([[], []], [tokens(9), tokens(5, 3)]):
        prefix = model.encode_passages(passages)
        expected = model.generate(ids, mask, fixed(prefix), **settings)
        found = model.generate(ids, mask, fixed(prefix), cache_implementation="static", **settings)
        assert torch.equal(found, expected)


@torch.no_grad()
def test_compiled_decoding_gives_the_same_tokens() -> None:
    """Traced, but not handed to a compiler, for it is the tracing that could go wrong."""
    model = model_of(layers=6, b=2, t=4)
    plain = ImpRAGModel(model.lm, model.config)
    settings = {"do_sample": False, "eos_token_id": None, "position_shift": 16}
    ids, mask = pad(tokens(5, seed=4), CPU)
    config = compile_config(backend="eager")
    # The language model itself was compiled before: a view must not use that.
    static = {"cache_implementation": "static", "compile_config": config}
    model.lm.generate(ids, attention_mask=mask, max_new_tokens=3, **static)
    model.compile_decoding()
    model._compiled_decoding.compiling = config
    for seed, beams in ((1, 1), (2, 1), (3, 3)):
        ids, mask = pad(tokens(7, 4 + seed, seed=seed), CPU, left=True)
        prefix = model.encode_passages([tokens(9, seed=seed), tokens(5 + seed, 3, seed=seed)])
        arguments = {**settings, "num_beams": beams, "max_new_tokens": 4 + seed}
        expected = plain.generate(ids, mask, fixed(prefix), **arguments)
        assert torch.equal(model.generate(ids, mask, fixed(prefix), **arguments), expected)


def reference_states(model: ImpRAGModel, row: list[int]) -> tuple[Tensor, Tensor]:
    """The last token's query and key state at layer b before RoPE, written out for Llama."""
    b = model.config.b
    hidden = model.lm(torch.tensor([row]), output_hidden_states=True).hidden_states[b]
    layer = model.lm.base_model.layers[b]
    last = layer.input_layernorm(hidden)[0, -1]
    return layer.self_attn.q_proj(last), layer.self_attn.k_proj(last)


@torch.no_grad()
def test_embeddings_equal_the_papers_formula() -> None:
    model = model_of(b=3, t=4)
    rows = tokens(9, 4, 6)
    ids, mask = pad(rows, CPU)
    queries, passages = model.query_embeddings(ids, mask), model.passage_embeddings(ids, mask)
    assert queries.dtype == passages.dtype == torch.float32
    for n, row in enumerate(rows):
        query, key = reference_states(model, row)
        averaged = torch.zeros(2, 16)
        for head in range(6):
            averaged[head // 3] += query[16 * head : 16 * (head + 1)] / 3
        for m, other in enumerate(rows):
            score = (averaged.flatten() @ reference_states(model, other)[1]) / 32**0.5
            torch.testing.assert_close(queries[n] @ passages[m], score, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(passages[n], key, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_embeddings_do_not_depend_on_padding(family: str) -> None:
    model = model_of(family, b=2)
    rows = tokens(9, 4, 14)
    for embed in (model.query_embeddings, model.passage_embeddings):
        alone = torch.cat([embed(*pad([row], CPU)) for row in rows])
        for left in (False, True):
            torch.testing.assert_close(
                embed(*pad(rows, CPU, left=left)), alone, atol=2e-5, rtol=1e-5
            )


@pytest.mark.parametrize("left", [False, True])
def test_queries_from_what_comes_into_layer_b(family: str, left: bool) -> None:
    model = model_of(family, b=2)
    batch = pad(tokens(9, 4, 14), CPU, left=left)
    expected = model.query_embeddings(*batch)
    inputs = query_inputs(model.decoder, *batch).detach()
    found = query_embeddings_of(model.decoder, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.zero_grad()
    found.square().sum().backward()
    here = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    below = "lm.model.layers.0.", "lm.model.layers.1.", "lm.model.embed_tokens"
    assert here
    assert not any(name.startswith(below) for name in here)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_embeddings_alone_equal_those_of_a_whole_pass(family: str, checkpointing: bool) -> None:
    """Alone, layer b-1 runs for one token; gradients are the same as where it runs for all."""
    model = model_of(family, b=2)
    model.train()
    prompts, passages = pad(tokens(6, 4, seed=1), CPU, left=True), pad(tokens(8, 5), CPU)

    def gradients(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (queries @ keys.T).exp().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    states = model.encode(*passages)
    whole = model(
        *prompts, fixed(states.for_prompts([[0], [1]])), position_shift=32
    ).query_embeddings
    expected = gradients(whole, states.embeddings)
    if checkpointing:
        model.lm.gradient_checkpointing_enable()
    alone = model.query_embeddings(*prompts), model.passage_embeddings(*passages)
    torch.testing.assert_close(alone, (whole, states.embeddings), atol=2e-5, rtol=1e-5)
    actual = gradients(*alone)
    for name, gradient in expected.items():
        if gradient.abs().max() > 0:
            torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_embeddings_do_not_depend_on_positions(family: str) -> None:
    """The same text at another offset, computed with the reading states in one pass."""
    model = model_of(family, b=2)
    ids, mask = pad(tokens(9, 4, 14), CPU)
    expected = model.passage_embeddings(ids, mask)
    assert expected.abs().max() > 0.1
    for offset in (0, 100):
        actual = model.encode(ids, mask, offset).embeddings
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_query_embeddings_in_a_forward_pass_with_responses() -> None:
    model = model_of(b=2)
    prompts, answers = tokens(4, 9, seed=1), tokens(3, 5, seed=2)
    ids, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], CPU)
    prefix = model.encode_passages([[], tokens(5)])
    ends = torch.tensor([len(p) - 1 for p in prompts])
    output = model(ids, mask, fixed(prefix), position_shift=48, query_tokens=ends)
    expected = model.query_embeddings(*pad(prompts, CPU))
    torch.testing.assert_close(output.query_embeddings, expected, atol=1e-5, rtol=1e-5)


def gradients(model: ImpRAGModel, loss: Tensor) -> dict[int, float]:
    model.zero_grad()
    loss.backward()
    return {
        number: sum(float(p.grad.abs().sum()) for p in layer.parameters() if p.grad is not None)
        for number, layer in enumerate(model.lm.base_model.layers)
    }


def test_gradients_reach_the_passages_and_both_towers() -> None:
    model = model_of(b=2, t=3)
    (prompt,), passages = tokens(6, seed=1), tokens(8, 5)
    ids, mask = pad([prompt], CPU)
    passage_ids, passage_mask = pad(passages, CPU)

    states = model.encode(passage_ids, passage_mask)
    with torch.no_grad():
        queries = model.query_embeddings(ids, mask)
    reached = gradients(model, (queries @ states.embeddings.T).sum())
    assert [reached[i] > 0 for i in range(6)] == [True, True, True, False, False, False]

    reached = gradients(model, model.query_embeddings(ids, mask).sum())
    assert [reached[i] > 0 for i in range(6)] == [True, True, True, False, False, False]

    # Through the reading states alone: the prompt's own pass is cut off below.
    states = model.encode(passage_ids, passage_mask)
    reading = model(ids, mask, fixed(states.for_prompts([[0, 1]])), position_shift=32).logits.sum()
    inner = [*states.keys.values(), *states.values.values()]
    arriving = torch.autograd.grad(reading, inner, retain_graph=True)
    assert all(g.abs().sum() > 0 for g in arriving)
    model.zero_grad()
    torch.autograd.backward(inner, arriving)
    for number, layer in enumerate(model.lm.base_model.layers):
        got = any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
        assert got == (number <= 3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model = model_of(family)
    prompts, passages = tokens(6, 4, seed=1), tokens(8, 5)
    ids, mask = pad(prompts, CPU)
    passage_ids, passage_mask = pad(passages, CPU)

    def step() -> dict[str, Tensor]:
        model.train()
        model.zero_grad()
        states = model.encode(passage_ids, passage_mask)
        output = model(ids, mask, fixed(states.for_prompts([[0, 1], [1]])), position_shift=32)
        loss = (
            output.logits.logsumexp(-1).sum()
            + (output.query_embeddings @ states.embeddings.T).exp().sum()
        )
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = step()
    model.lm.gradient_checkpointing_enable()
    actual = step()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("coded", [False, True])
def test_a_passage_that_weighs_double_is_read_twice(coded: bool) -> None:
    model, passages = model_of(), tokens(4, 9, 6)
    prompts = tokens(7, 3, 5, seed=1)
    ids, mask = pad(prompts, CPU, left=True)
    states = model.encode(*pad(passages, CPU))

    def logits(assignment: list[list[int]], weights: list[list[float]] | None) -> Tensor:
        prefix = states.for_prompts(assignment)
        if coded:
            blocks = [
                torch.cat([states.blocks()[p] for p in row] or [states.blocks()[0][..., :0, :]], 3)
                for row in assignment
            ]
            prefix = PassageKV.from_blocks(blocks, model.config.b, prefix.lengths)
        if weights is not None:
            prefix = replace(prefix, passage_bias=[[math.log(w) for w in row] for row in weights])
        assert prefix.mask.sum(dim=1).tolist() == [sum(row) for row in prefix.lengths]
        out = model(ids, mask, fixed(prefix), position_shift=48).logits
        return out.masked_fill(~mask.bool()[..., None], 0)

    assignment: list[list[int]] = [[0, 1], [], [2, 0, 1]]
    plain = logits(assignment, None)
    torch.testing.assert_close(logits(assignment, [[1, 1], [], [1, 1, 1]]), plain)
    weighted = logits(assignment, [[2, 1], [], [1, 1, 3]])
    expected = logits([[0, 0, 1], [], [2, 0, 1, 1, 1]], None)
    torch.testing.assert_close(weighted, expected, atol=1e-5, rtol=0)
    assert (weighted - plain).abs().amax() > 1e-3


def test_weights_by_score_are_relative_to_the_best() -> None:
    model, passages = model_of(), tokens(4, 9)
    prefix = model.encode(*pad(passages, CPU)).for_prompts([[1, 0], [0], []])
    bias = [score_bias(scores, 2.0) for scores in ([3.5, 4.0], [-2.0], [])]
    assert bias == [[-1.0, 0.0], [0.0], []]
    weighted = replace(prefix, passage_bias=bias)
    assert weighted.repeat(2).passage_bias == [[-1.0, 0.0], [-1.0, 0.0], [0.0], [0.0], [], []]
    lowest = torch.finfo(torch.float32).min
    assert weighted.bias is not None
    assert weighted.bias.tolist() == [
        [-1.0] * 9 + [0.0] * 4,
        [0.0] * 4 + [lowest] * 9,
        [lowest] * 13,
    ]


@torch.no_grad()
def test_soft_caps_count_whatever_attention_the_model_was_loaded_with() -> None:
    """transformers before 5.23 loads Gemma 2 with one that drops them."""
    ids, mask = pad(tokens(7), CPU)
    expected = model_of("gemma2").lm(ids, attention_mask=mask).logits
    lm = tiny_lm("gemma2")
    lm.config._attn_implementation = "sdpa"
    model = ImpRAGModel(lm, model_of("gemma2").config)
    nothing = model.encode_passages([[]])
    torch.testing.assert_close(model(ids, mask, fixed(nothing), position_shift=0).logits, expected)
    assert lm.config._attn_implementation == "imprag_eager"


def test_where_reading_cannot_be_weighted() -> None:
    with pytest.raises(ImpRAGError, match="passage_encoding full makes one"):
        model_of(passage_encoding="full", attention_score_bias=1.0)
    with pytest.raises(ImpRAGError, match="must not be negative, but is -1"):
        model_of(attention_score_bias=-1)
    with pytest.raises(ImpRAGError, match="gemma2, whose attention is its own code: set it to 0"):
        model_of("gemma2", attention_score_bias=1.0)


def test_reading_without_copies_equals_reading_with_gradients(family: str) -> None:
    """Without gradients, passages and prompt stay apart; with them, they are put side by side."""
    model = model_of(family)
    passages, prompts = tokens(9, 5, 12), tokens(7, 3, seed=1)
    given = [passages[:2], passages[2:]]
    apart = [logits.detach() for logits in read(model, prompts, given)]
    with torch.no_grad():
        for one, other in zip(read(model, prompts, given), apart, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_passages_run_no_further_than_the_keys_of_layer_t() -> None:
    model = model_of()
    ran: list[int] = []
    for number, layer in enumerate(model.lm.base_model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    ids, mask = pad(tokens(9, 5), CPU)
    with torch.no_grad():
        short = model.encode(ids, mask)
    # Nor do the pooling tokens, for which layer b = 1 begins once more, run to its end.
    assert sorted(ran) == [0, 1, 2]
    whole = model.encode(ids, mask)
    for layer in (1, 2, 3):
        torch.testing.assert_close(short.keys[layer], whole.keys[layer].detach())
        torch.testing.assert_close(short.values[layer], whole.values[layer].detach())


@torch.no_grad()
def test_attention_for_compiling_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family, b=2)
    rows = tokens(9, 4, 12)
    batches = [pad(rows, CPU), pad(rows, CPU, left=True), pad(rows[:1], CPU)]
    plain = [model.passage_embeddings(*batch) for batch in batches]
    monkeypatch.setattr(torch, "compile", lambda layer, dynamic: layer)
    model.compile_bottom()
    for expected, batch in zip(plain, batches, strict=True):
        torch.testing.assert_close(model.passage_embeddings(*batch), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiling for a CPU needs a C++ compiler")
@torch.no_grad()
def test_compiled_layers_give_the_same_embeddings() -> None:
    model = model_of(b=2)
    batch = pad(tokens(9, 4, 12), CPU)
    expected = model.passage_embeddings(*batch)
    model.compile_bottom()
    torch.testing.assert_close(model.passage_embeddings(*batch), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_is_close_to_float32() -> None:
    exact, rounded = model_of(), model_of()
    rounded.to(torch.bfloat16)
    (prompt,), passages = tokens(6, seed=1), tokens(8, 5)
    expected = read(exact, [prompt], [passages])[0]
    actual = read(rounded, [prompt], [passages])[0]
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).abs().mean() < 0.05 * expected.abs().mean()
    queries = rounded.query_embeddings(*pad([prompt], CPU))
    assert queries.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"b": 3, "t": 3}, "0 <= b < t"),
        ("llama", {"b": 3, "t": 6}, "t can be 5 at most"),
        ("mistral", {"max_passage_tokens": 600}, "sliding window of 512"),
        ("mistral", {"max_passage_tokens": 200, "passage_encoding": "full"}, "up to 600"),
        ("llama", {"k": 0}, "k must be at least 1"),
        ("llama", {"passage_template": "{title}"}, "hold {text} once"),
        ("llama", {"score_scale": -1.0}, "positive"),
    ],
)
def test_settings_that_do_not_fit(family: str, settings: dict, message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        model_of(family, **settings)


def test_a_model_without_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    lm = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=32, n_head=2, vocab_size=97))
    with pytest.raises(ImpRAGError, match=r"gpt2.*no rotary position embedding"):
        ImpRAGModel(lm, ImpRAGConfig(base_model="gpt2", b=1, t=2))
