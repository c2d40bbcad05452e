"""The training step against a plain reference that runs each prompt and passage alone."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_batches import LAYERS, LONGEST, STAGES, B, T, random_batch, tiny_model
from torch import Tensor, nn

from imprag.model import ImpRAGModel
from imprag.model.generate import fixed
from imprag.model.inputs import batches_by_length, pad
from imprag.model.kv import PassageKV
from imprag.training.objectives import nce_loss
from imprag.training.recipe import StageSettings
from imprag.training.step import StepOutput, TrainingBatch, TrainingModel

# Prompts that read three, two or one passage and share one; some only retrieve, two only write.
MIXED = random_batch([3, 1, 0, 4, 6, 0, 2], [[0, 1, 2], [5, 2], [], [], [4], [], []], 9)
BATCHES = {
    "mixed": MIXED,
    "no prompt retrieves": random_batch([3, 1, 5], [[], [], []], 0),
    "no prompt is generated": random_batch([0, 0, 0], [[], [], []], 7),
    "all passages are read": random_batch([2, 3], [[0, 1, 2, 3], [3, 1]], 4),
    "nothing right or wrong": replace(
        MIXED, positive=torch.zeros(7, 9).bool(), negative=torch.zeros(7, 9).bool()
    ),
}
KINDS = {
    "warmup": (STAGES, False),
    "self-distillation": (STAGES, True),
}


# The reference


def reference(model: ImpRAGModel, batch: TrainingBatch, stages: StageSettings) -> StepOutput:
    """The losses in float64, by loops over prompts and passages that run alone."""
    states = [model.encode(*alone(passage)) for passage in batch.passages]
    queries = [model.query_embeddings(*alone(prompt))[0] for prompt in batch.prompts]
    scores = [[query.double() @ p.embeddings[0].double() for p in states] for query in queries]

    def read(prompt: int, candidates: list[int]) -> Tensor:
        """log P of each response token, (tokens,)."""
        before, response = batch.prompts[prompt], torch.tensor(batch.responses[prompt])
        prefix = model.encode_passages([[]])
        if candidates:
            keys, values = (
                {
                    layer: torch.cat([getattr(states[p], name)[layer] for p in candidates], dim=2)
                    for layer in range(B, T + 1)
                }
                for name in ("keys", "values")
            )
            prefix = PassageKV(keys, values, [[keys[B].shape[2]]])
        shift = max(len(candidates), model.config.k) * LONGEST if candidates else 0
        text = alone([*before, *response.tolist()])
        logits = model(*text, fixed(prefix), position_shift=shift).logits[0].double()
        following = logits[len(before) - 1 : -1].log_softmax(dim=-1)
        return following.gather(1, response[:, None])[:, 0]

    def divergence(target: list[Tensor], of: list[Tensor], *temperatures: float) -> Tensor:
        p = (torch.stack(target).detach().double() / temperatures[0]).softmax(dim=0)
        q = (torch.stack(of) / temperatures[1]).softmax(dim=0)
        return (p * (p.log() - q.log())).sum()

    def mean(terms: list[Tensor]) -> Tensor:
        return torch.stack(terms).mean() if terms else torch.zeros(()).double()

    generated = [prompt for prompt, response in enumerate(batch.responses) if response]
    tokens = [read(prompt, list(batch.candidates[prompt])) for prompt in generated]
    generation = mean([-token for row in tokens for token in row])

    terms: list[Tensor] = []
    if batch.self_distillation:
        distillation = stages.self_distillation
        for prompt in generated:
            candidates = batch.candidates[prompt]
            if len(candidates) > 1:
                target = [read(prompt, [passage]).sum() for passage in candidates]
                of = [scores[prompt][passage] for passage in candidates]
                settings = distillation.objective
                temperatures = settings["target_temperature"], settings["score_temperature"]
                terms.append(divergence(target, of, *temperatures))
        retrieval = mean(terms)
    else:
        for row, positive, negative in zip(scores, batch.positive, batch.negative, strict=True):
            if positive.any() and negative.any():
                against = sum(row[n].exp() for n in negative.nonzero()[:, 0])
                parts = [row[p].exp() / (row[p].exp() + against) for p in positive.nonzero()[:, 0]]
                terms.append(-torch.stack(parts).log().sum())
        retrieval = mean(terms)
    loss = generation + stages.retrieval_weight * retrieval
    table = [torch.stack(row) for row in scores if row]
    return StepOutput(loss, generation, retrieval, torch.stack(table) if table else loss)


def alone(row: list[int]) -> tuple[Tensor, Tensor]:
    return pad([row], torch.device("cpu"))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all parameters by name; zeros for parameters without one."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_equal_those_of_the_reference(name: str, kind: str) -> None:
    stages, self_distillation = KINDS[kind]
    batch = replace(BATCHES[name], self_distillation=self_distillation)
    model = tiny_model(stages=stages)
    output = model(batch)
    output.loss.backward()
    found = gradients(model.model)

    model.zero_grad()
    expected = reference(model.model, batch, stages)
    if expected.loss.requires_grad:
        expected.loss.backward()
    for field in ("loss", "generation", "retrieval"):
        assert getattr(output, field).item() == pytest.approx(
            getattr(expected, field).item(), rel=1e-5, abs=1e-6
        )
    if batch.passages:
        torch.testing.assert_close(output.scores.double(), expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, gradients(model.model), rtol=1e-3, atol=2e-5)


def test_the_reference_batch_has_both_losses() -> None:
    for stages, self_distillation in KINDS.values():
        output = tiny_model(stages=stages)(replace(MIXED, self_distillation=self_distillation))
        assert output.generation > 1
        assert output.retrieval > 0.01
        together = output.generation + 0.6 * output.retrieval
        assert output.loss.item() == pytest.approx(together.item())


# Sub-batches


@st.composite
def batches(draw: st.DrawFn) -> TrainingBatch:
    passages = draw(st.integers(0, 6))
    rows = st.lists(st.integers(0, passages - 1), unique=True, max_size=4)
    prompts = draw(st.integers(1, 5))
    responses = draw(st.lists(st.integers(0, 6), min_size=prompts, max_size=prompts))
    return random_batch(
        responses,
        [draw(rows) if n and passages else [] for n in responses],
        passages,
        seed=draw(st.integers(0, 99)),
        self_distillation=draw(st.booleans()),
    )


@given(batches(), st.sampled_from([1, 20, 50]))
@settings(max_examples=25)
def test_sub_batches_equal_the_whole_batch(batch: TrainingBatch, batch_tokens: int) -> None:
    whole, parts = tiny_model(10**6), tiny_model(batch_tokens)
    expected, output = whole(batch), parts(batch)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    expected.loss.backward()
    output.loss.backward()
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 50, 10**6])
def test_sub_batches_run_each_row_once(batch_tokens: int) -> None:
    calls: list[Tensor] = []
    batch = replace(MIXED, self_distillation=True)
    model = tiny_model(batch_tokens)
    embed = model.model.lm.get_input_embeddings()
    embed.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0]))
    model(batch)
    for input_ids in calls:
        assert input_ids.numel() <= batch_tokens or len(input_ids) == 1
    pairs = [prompt for prompt, read in enumerate(batch.candidates) for _ in read]
    expected = [
        *batch.passages,
        *([*p, *r] for p, r in zip(batch.prompts, batch.responses, strict=True)),
        *([*batch.prompts[n], *batch.responses[n]] for n in pairs),
    ]
    found = [row[row != 0].tolist() for input_ids in calls for row in input_ids]
    assert sorted(found) == sorted(map(list, expected))
    if batch_tokens == 10**6:
        assert len(calls) < len(expected)


def test_padding_is_at_most_a_tenth() -> None:
    """The batch has rows of the lengths in configs/smollm2-factbook.yaml."""
    generator = random.Random(0)
    lengths = [
        [generator.randint(120, 256) for _ in range(28)],  # passages that are only embedded
        [generator.randint(120, 256) for _ in range(6)],  # passages that are read
        [generator.randint(12, 25) for _ in range(30)],  # prompts that only retrieve
        [*(generator.randint(15, 60) for _ in range(6)), 150, 220],  # generated prompts
    ]
    padded = sum(
        len(group) * max(rows[i] for i in group)
        for rows in lengths
        for group in batches_by_length(rows, 2048)
    )
    assert sum(map(sum, lengths)) >= 0.9 * padded


# Cross-batch memory


def test_passages_in_the_cross_batch_memory_are_negatives() -> None:
    model = tiny_model()
    first = replace(random_batch([0] * 3, [[]] * 3, 4), columns=(10, 11, 12, 13))
    model(first)
    memory = torch.stack([model.cross_batch_memory[row] for row in (13, 10)])
    assert memory.equal(model.model.passage_embeddings(*rows(first.passages))[[3, 0]])

    batch = random_batch([0] * 4, [[]] * 4, 5, seed=1)
    negative = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool()
    kept = {"cross_batch_memory": (13, 99, 10), "cross_batch_negative": negative}
    later = replace(batch, columns=range(5), **kept)
    queries = model.model.query_embeddings(*rows(batch.prompts))
    alone = model(batch).scores
    model.cross_batch_memory = {13: memory[0], 10: memory[1], 77: memory[0]}
    output = model(later)
    expected = nce_loss(
        torch.cat([alone, queries @ memory.T], dim=1),
        torch.cat([batch.positive, torch.zeros(4, 2).bool()], dim=1),
        torch.cat([batch.negative, negative[:, [0, 2]]], dim=1),  # 99 is not in the memory
    )
    torch.testing.assert_close(output.retrieval, expected, rtol=1e-5, atol=1e-5)
    assert set(model.cross_batch_memory) == {0, 1, 2, 3, 4, 10, 13}
    assert not any(embedding.requires_grad for embedding in model.cross_batch_memory.values())


def rows(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    return pad(tokens, torch.device("cpu"))


# Layers that run, and layers that are trained


def with_passages_apart() -> tuple[TrainingModel, ImpRAGModel, ImpRAGModel]:
    """A training model whose passages run through a copy of the weights; both models.

    Gradients of the passages are then separate from those of the prompts.
    """
    model = tiny_model()
    prompts, passages = model.model, copy.deepcopy(model.model)
    prompts.encode = passages.encode
    prompts.passage_embeddings = passages.passage_embeddings
    return model, prompts, passages


ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} | {
    "input_layernorm",
    "post_attention_layernorm",
}


def learning(model: ImpRAGModel) -> list[set[str]]:
    """The modules of each layer that received a gradient, none of which is zero throughout."""
    parts: list[set[str]] = []
    for layer in model.lm.base_model.layers:
        received = {n.split(".")[-2]: p.grad for n, p in layer.named_parameters()}
        parts.append({name for name, gradient in received.items() if gradient is not None})
        assert all(received[name].abs().max() > 0 for name in parts[-1])
    return parts


def test_generation_trains_the_encoding_of_passages_up_to_layer_t() -> None:
    model, prompts, passages = with_passages_apart()
    model(MIXED).generation.backward()
    at_t = {"k_proj", "v_proj", "input_layernorm"}
    assert learning(passages) == [ALL] * T + [at_t] + [set()] * (LAYERS - T - 1)
    assert passages.lm.lm_head.weight.grad is None
    assert passages.lm.base_model.norm.weight.grad is None
    assert learning(prompts) == [ALL] * LAYERS


@pytest.mark.parametrize("self_distillation", [False, True])
def test_retrieval_trains_both_towers_and_no_layer_above(self_distillation: bool) -> None:
    model, prompts, passages = with_passages_apart()
    model(replace(MIXED, self_distillation=self_distillation)).retrieval.backward()
    above = [set()] * (LAYERS - B - 1)
    # So no gradient runs through the target of self-distillation either.
    assert learning(prompts) == [ALL] * B + [{"q_proj", "input_layernorm"}, *above]
    assert learning(passages) == [ALL] * B + [{"k_proj", "input_layernorm"}, *above]
    for side in (prompts, passages):
        assert side.lm.lm_head.weight.grad is None
        assert side.lm.base_model.norm.weight.grad is None


def count_rows(model: ImpRAGModel) -> tuple[list[int], list[int]]:
    """Counts the rows that run through each layer: whole sequences, and single tokens."""
    sequences, single = [0] * LAYERS, [0] * LAYERS

    def counter(number: int) -> Callable[..., None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows, length, _ = inputs[0].shape
            (single if length == 1 else sequences)[number] += rows

        return count

    for number, layer in enumerate(model.lm.base_model.layers):
        layer.register_forward_pre_hook(counter(number))
    return sequences, single


@pytest.mark.parametrize("self_distillation", [False, True])
def test_each_row_runs_once_and_no_further_than_needed(self_distillation: bool) -> None:
    model, prompts, passages = with_passages_apart()
    (sequences, single), of_prompts = count_rows(passages), count_rows(prompts)
    model(replace(MIXED, self_distillation=self_distillation))
    # Layer b gives an embedding by one token of a row, and runs in full only where it is read.
    # Layer b-1 starts with all tokens; where only embeddings are wanted, it goes on with one.
    read, everything = 5, 9
    assert sequences == [everything] * B + [read] * (T - B + 1) + [0] * (LAYERS - T - 1)
    above = [0] * (LAYERS - B - 1)
    assert single == [0] * (B - 1) + [everything - read, everything, *above]

    generated, everything = 5, 7
    scored = 6 if self_distillation else 0  # prompts with one of their candidates
    sequences, single = of_prompts
    assert sequences == [everything + scored] * B + [generated + scored] * (LAYERS - B)
    assert single == [0] * (B - 1) + [everything - generated, everything + scored, *above]
