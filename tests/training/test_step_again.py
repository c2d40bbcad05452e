"""Responses that retrieve again in the training step, against a plain reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_batches import LONGEST, STAGES, B, T, random_batch, tiny_model
from torch import Tensor, nn

from imprag.model import ImpRAGModel
from imprag.model.decoding import DecodingBatch, prefill
from imprag.model.generate import PromptTokens
from imprag.model.hooks import LayerWrapper
from imprag.model.inputs import pad
from imprag.model.kv import RowKV
from imprag.training.step import LaterQuery, TrainingBatch, _windows

KEPT = ("beside", "instead")
# Prompts that ask again once, twice and never; one retrieves only, but its response would ask.
RESPONSES = [5, 6, 3, 0, 4]
CANDIDATES = [[0, 1, 2], [5, 2], [3, 4], [], []]


def batch(seed: int = 0) -> TrainingBatch:
    made = random_batch(RESPONSES, CANDIDATES, 9, seed=seed)
    later = [
        LaterQuery(0, made.responses[0][:3], [2, 6, 7]),
        LaterQuery(1, made.responses[1][:2], [5, 8]),
        LaterQuery(1, made.responses[1][:4], [2, 0]),
        LaterQuery(3, [7, 8, 9], []),
    ]
    labels = torch.randint(4, (9, 9), generator=torch.Generator().manual_seed(seed + 1))
    labels[:, 0], labels[:, 1] = 0, 2  # every query has a positive and a negative
    return replace(made, later=later, positive=labels == 0, negative=labels > 1)


def model_of(kept: Any) -> Any:
    model = tiny_model()
    config = replace(model.model.config, retrieve="on:x", passages_kept=kept)
    model.model.config = model.model.decoder.config = config
    return model


def in_force(batch: TrainingBatch, prompt: int, kept: str) -> list[tuple[int, list[int]]]:
    """From which token of the whole text on a prompt's response reads which passages."""
    read = [(0, list(batch.candidates[prompt]))]
    for one in batch.later:
        if one.prompt == prompt and batch.responses[prompt]:
            start = len(batch.prompts[prompt]) + len(one.written) - 1
            former = read[-1][1] if kept == "beside" else []
            read.append((start, list(dict.fromkeys([*former, *one.candidates]))))
    return read


def reference(model: ImpRAGModel, batch: TrainingBatch, kept: str) -> tuple[Tensor, Tensor]:
    """Generation and retrieval loss in float64; each text runs alone, with a plain softmax."""
    states = [model.encode(*alone(passage)) for passage in batch.passages]
    texts = [*batch.prompts, *([*batch.prompts[x.prompt], *x.written] for x in batch.later)]
    terms = []
    for text, positive, negative in zip(texts, batch.positive, batch.negative, strict=True):
        query = model.query_embeddings(*alone(text))[0].double()
        scores = torch.stack([query @ p.embeddings[0].double() for p in states])
        against = scores[negative].exp().sum()
        terms.append(-(scores[positive].exp() / (scores[positive].exp() + against)).log().sum())
    tokens = []
    for prompt, response in enumerate(batch.responses):
        if not response:
            continue
        text = [*batch.prompts[prompt], *response]
        read = in_force(batch, prompt, kept)
        wrappers = {
            layer: LayerWrapper(model.decoder.layer(layer), attend=plain(layer, states, read))
            for layer in range(B, T + 1)
        }
        shift = model.config.k * LONGEST if batch.candidates[prompt] else 0
        positions = torch.arange(len(text))[None] + shift
        logits = model.decoder.lm_view(wrappers)(torch.tensor([text]), position_ids=positions)
        after = logits.logits[0].double()[len(batch.prompts[prompt]) - 1 : -1].log_softmax(-1)
        tokens += [-row[token] for row, token in zip(after, response, strict=True)]
    return torch.stack(tokens).mean(), torch.stack(terms).mean()


def plain(layer: int, states: Sequence[Any], read: list[tuple[int, list[int]]]) -> Any:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        heads, outputs = query.shape[1] // key.shape[1], []
        for n in range(query.shape[2]):
            own = [passages for start, passages in read if start <= n][-1]
            keys = torch.cat([*(states[p].keys[layer][0] for p in own), key[0, :, : n + 1]], 1)
            values = torch.cat(
                [*(states[p].values[layer][0] for p in own), value[0, :, : n + 1]], 1
            )
            keys, values = (x.repeat_interleave(heads, dim=0) for x in (keys, values))
            scores = query[0, :, n, None] @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
            outputs.append(scores.softmax(-1) @ values)
        return torch.cat(outputs, dim=1).transpose(0, 1)[None], None

    return attend


def alone(row: Sequence[int]) -> tuple[Tensor, Tensor]:
    return pad([row], torch.device("cpu"))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }
    model.zero_grad()
    return found


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("batch_tokens", [20, 10**6])
def test_losses_and_gradients_equal_those_of_the_reference(kept: str, batch_tokens: int) -> None:
    model = model_of(kept)
    model.batch_tokens = batch_tokens
    output = model(batch())
    generation, retrieval = reference(model.model, batch(), kept)
    assert output.generation.item() == pytest.approx(generation.item(), rel=1e-5)
    assert output.retrieval.item() == pytest.approx(retrieval.item(), rel=1e-5)
    for loss, expected in ((output.retrieval, retrieval), (output.generation, generation)):
        loss.backward(retain_graph=True)
        found = gradients(model.model)
        expected.backward(retain_graph=True)
        torch.testing.assert_close(found, gradients(model.model), rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kept", KEPT)
def test_training_reads_what_inference_reads(kept: str) -> None:
    model = model_of(kept)
    given = batch()
    tokens = []
    for prompt, response in enumerate(given.responses):
        if not response:
            continue
        read = in_force(given, prompt, kept)
        kv = [
            model.model.encode_passages([[given.passages[p] for p in passages]])
            for _, passages in read
        ]
        shift = model.model.config.position_shift(len(given.candidates[prompt]))
        ids, mask = alone(given.prompts[prompt])
        prompts = PromptTokens(ids, mask, shift)
        (row,) = prefill(model.model.decoder, lambda queries, kv=kv: RowKV([kv[0]]), prompts)
        steps = DecodingBatch(model.model.decoder)
        steps.join([row])
        logits = [row.logits]
        for n, token in enumerate(response[:-1]):
            place = len(given.prompts[prompt]) + n
            due = [i for i, (start, _) in enumerate(read) if i and start == place]
            again = ([0], lambda *_, due=due, kv=kv: [kv[due[0]]]) if due else None
            logits.append(steps.step([token], again)[0])
        after = torch.stack(logits).double().log_softmax(-1)
        tokens += [-row[token] for row, token in zip(after, response, strict=True)]
    assert model(given).generation.item() == pytest.approx(torch.stack(tokens).mean().item(), 1e-5)


def test_the_two_ways_of_keeping_passages_differ() -> None:
    losses = [model_of(kept)(batch()).generation.item() for kept in KEPT]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_passage_is_in_one_window_while_it_is_read() -> None:
    end = 2**63 - 1
    found = [(0, [1, 2]), (5, [2, 3]), (8, [1, 3])]
    assert sorted(_windows(found)) == [(1, (0, 5)), (1, (8, end)), (2, (0, 8)), (3, (5, end))]


def test_the_second_query_learns_from_its_own_labels() -> None:
    """A few steps rank the positives of both queries first."""
    model = model_of("instead")
    given = random_batch([6, 6], [[0, 1], [2, 3]], 4)
    later = [
        LaterQuery(0, given.responses[0][:3], [1, 2]),
        LaterQuery(1, given.responses[1][:3], [3]),
    ]
    positive = torch.eye(4).bool()[[0, 2, 1, 3]]
    given = replace(given, later=later, positive=positive, negative=~positive)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = model(given)
    for _ in range(25):
        optimizer.zero_grad()
        output = model(given)
        output.loss.backward()
        optimizer.step()
    assert output.loss.item() < 0.2 * first.loss.item()
    assert output.scores.argmax(1).tolist() == [0, 2, 1, 3]
    assert STAGES.retrieval_weight > 0
