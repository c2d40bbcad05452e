"""A model is fitted to a corpus in minutes, by what makes its queries alone (beyond the paper).

A passage embedding is made of layer b's key projection, a query embedding of its query projection.
So the latter can learn while all embeddings stay as they are, and with them every index. Nothing
but a matrix is trained, on states that are computed once, and each prompt is held against the whole
corpus rather than against the other passages of a batch.
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.index.passage_index import PassageIndex
from imprag.io.files import atomic_path
from imprag.model import ImpRAGModel
from imprag.model.base import resolve_dtype
from imprag.model.fingerprint import QUERIES
from imprag.model.inputs import batches_by_length, pad
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.query import query_embeddings_of, query_inputs
from imprag.model.text import prompt_tokens
from imprag.training.data import TrainingExample, TrainingSource
from imprag.training.objectives import nce_against_all, relevance_scores
from imprag.training.recipe import LONGEST_TEXT
from imprag.training.samplers.sampling import Epochs, Mixture, single_epochs
from imprag.training.wise_ft import interpolate, trained_weights

FEWEST_PROMPTS = 2
"""Prompts of a source: one to train on and one to measure with."""

_HELD_BACK = 0.05  # of each source's prompts, to measure with
_MOST_HELD_BACK = 500
_MOST_PASSAGES = 200_000  # that prompts are held against; a batch's scores take 4 bytes for each
_RANK = 10
_WARMUP_STEPS = 50


@dataclass(frozen=True)
class SourceRecall:
    """What is found for the prompts of a source that were held back from training.

    Attributes:
        source: its name.
        prompts: that were measured with.
        before, after: shares of them that have a right passage first, and among the first ten.
    """

    source: str
    prompts: int
    before: tuple[float, float]
    after: tuple[float, float]


def adapt(
    model: ImpRAGModel,
    tokenizer: Any,
    corpus: Corpus,
    index: PassageIndex,
    sources: Sequence[TrainingSource],
    *,
    steps: int = 1000,
    prompts: int = 256,
    learning_rate: float = 0.01,
    wise_ft_alpha: float = 1.0,
    seed: int = 0,
    left_out: frozenset[int] = frozenset(),
    kept: Path | None = None,
) -> list[SourceRecall]:
    """Train what makes the queries of layer b, in place.

    The loss is that of warmup (paper, equation 3), with every other passage as a negative.

    Args:
        model: the model, in float32.
        tokenizer: its tokenizer.
        corpus: the passages.
        index: their embeddings by this model.
        sources: prompts with their right passages; they are drawn by the weights.
        steps: of AdamW.
        prompts: in each of them.
        learning_rate: at first; it falls to nothing.
        wise_ft_alpha: weight of the trained projection in the one that is kept: (1 - alpha) ·
            initial + alpha · trained (:mod:`imprag.training.wise_ft`).
        seed: of what is held back and drawn.
        left_out: rows of the corpus that count neither as right nor as wrong.
        kept: a file for what comes into layer b, most of the work. It is read if it is of the same
            model and prompts, so that a call that was killed is gone on with, and left there.

    Returns:
        what is found before and after, one for each source.

    Raises:
        ImpRAGError: there is nothing to train or to train on (`query_projection`), or the loss is
            no finite number.
    """
    if steps < 1 or prompts < 1:
        raise ImpRAGError(f"{steps} steps of {prompts} prompts are no training")
    if not 0 < wise_ft_alpha <= 1:
        raise ImpRAGError(f"wise_ft_alpha must be above 0 and at most 1, not {wise_ft_alpha}")
    weight = query_projection(model)[1].weight
    sources = [usable(source, left_out) for source in sources]
    for source in sources:
        _check_size(source)
    examples = [example for source in sources for example in source.examples]
    rows = _rows(examples, corpus, left_out, seed)
    column_of = {row: column for column, row in enumerate(rows)}
    right = [[column_of[row] for row in example.positives] for example in examples]
    ids = [passage.id for passage in corpus.passages(rows)]
    passages = torch.from_numpy(index.embeddings(ids)).to(model.device)
    encoder = PassageEncoder(model, tokenizer)
    inputs = _kept_inputs(encoder, [example.prompt for example in examples], kept)

    trained: list[range] = []
    held_back: list[range] = []
    start = 0
    for source in sources:
        size = len(source.examples)
        count = min(_MOST_HELD_BACK, max(1, int(_HELD_BACK * size)))
        held_back.append(range(start, start + count))
        trained.append(range(start + count, start + size))
        start += size

    def found(numbers: range) -> tuple[float, float]:
        return _recall(model, inputs, passages, [right[n] for n in numbers], numbers)

    before = [found(numbers) for numbers in held_back]
    mixture = Mixture({n: one.weight for n, one in enumerate(sources)}, f"{seed} adaptation")
    epochs = [Epochs(single_epochs(part), f"{seed} {n}") for n, part in enumerate(trained)]
    optimizer = torch.optim.AdamW([weight], learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / steps)
    )
    model.requires_grad_(False)
    weight.requires_grad_(True)
    initial = trained_weights(model)
    with tqdm(range(steps), "Adapting", unit=" steps", disable=None) as bar:
        for step in bar:
            batch: list[int] = []
            for draw in range(step * prompts, (step + 1) * prompts):
                chosen, position = mixture.draw(draw)
                batch += epochs[chosen].bundle(position)
            scores = relevance_scores(query_embeddings_of(model.decoder, inputs[batch]), passages)
            loss = nce_against_all(scores, [right[number] for number in batch])
            if not bool(loss.isfinite()):
                raise ImpRAGError(
                    f"the loss of step {step + 1} is {loss.item()}; lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    interpolate(model, initial, wise_ft_alpha)
    weight.requires_grad_(False)
    return [
        SourceRecall(source.name, len(numbers), first, found(numbers))
        for source, numbers, first in zip(sources, held_back, before, strict=True)
    ]


def query_projection(model: ImpRAGModel) -> tuple[str, torch.nn.Linear]:
    """What makes the queries of layer b, and nothing else: the module and its name in the model.

    Raises:
        ImpRAGError: there is no such module.
    """
    start = f"{model.lm.base_model_prefix}.layers.{model.config.b}."
    for name, module in model.lm.named_modules():
        if name.startswith(start) and name.endswith(f".{QUERIES[0]}"):
            assert isinstance(module, torch.nn.Linear)
            return name, module
    raise ImpRAGError(
        f"{model.config.base_model} makes queries and keys with one projection: the former "
        "cannot be trained without changing the passages' embeddings"
    )


def usable(source: TrainingSource, left_out: frozenset[int] = frozenset()) -> TrainingSource:
    """The source's examples that have a prompt and a right passage that is not left out."""
    examples = [
        replace(example, positives=tuple(row for row in example.positives if row not in left_out))
        for example in source.examples
    ]
    examples = [example for example in examples if example.positives and example.prompt]
    return replace(source, examples=examples)


def _check_size(source: TrainingSource) -> None:
    """Refuse a source that cannot be both trained on and measured with."""
    if len(source.examples) < FEWEST_PROMPTS:
        raise ImpRAGError(
            f"the source '{source.name}' has too few prompts with a right passage in the corpus: "
            f"{len(source.examples)}, where adapting needs {FEWEST_PROMPTS}; leave it out, or "
            "bring more prompts"
        )


def _rows(
    examples: Sequence[TrainingExample], corpus: Corpus, left_out: frozenset[int], seed: int
) -> list[int]:
    """Corpus rows that prompts are held against; of large corpora only a part."""
    asked = {row for example in examples for row in example.positives}
    others = [row for row in range(len(corpus)) if row not in asked and row not in left_out]
    room = max(0, _MOST_PASSAGES - len(asked))
    if len(others) > room:
        others = random.Random(f"{seed} passages").sample(others, room)
    return sorted(asked.union(others))


def _kept_inputs(encoder: PassageEncoder, prompts: Sequence[str], kept: Path | None) -> Tensor:
    """`_inputs`, read from the file if it has them, and else written there."""
    digest = hashlib.sha256(json.dumps([encoder.fingerprint(), *prompts]).encode()).hexdigest()
    if kept is not None and kept.exists():
        with contextlib.suppress(SafetensorError), safe_open(kept, "pt") as file:
            if (file.metadata() or {}).get("of") == digest:
                inputs: Tensor = file.get_tensor("inputs")
                return inputs.to(encoder.model.device)
    inputs = _inputs(encoder, prompts)
    if kept is not None:
        with atomic_path(kept) as temporary:
            save_file({"inputs": inputs.cpu()}, temporary, {"of": digest})
    return inputs


@torch.inference_mode()
def _inputs(encoder: PassageEncoder, prompts: Sequence[str]) -> Tensor:
    """What layer b makes the prompts' queries of, (prompts, hidden) float32."""
    model, device = encoder.model, encoder.model.device
    tokens = prompt_tokens(encoder.tokenizer, prompts, LONGEST_TEXT)
    inputs = torch.empty(len(prompts), model.lm.config.get_text_config().hidden_size)
    batches = batches_by_length([len(one) for one in tokens], encoder.batch_tokens)
    low = resolve_dtype("auto", device) is torch.bfloat16
    with tqdm(total=len(prompts), desc="Prompts", unit=" prompts", disable=None) as bar:
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                found = query_inputs(model.decoder, *pad([tokens[n] for n in batch], device))
            inputs[batch] = found.float().cpu()
            bar.update(len(batch))
    return inputs.to(device)


@torch.inference_mode()
def _recall(
    model: ImpRAGModel,
    inputs: Tensor,
    passages: Tensor,
    right: Sequence[Sequence[int]],
    numbers: range,
) -> tuple[float, float]:
    queries = query_embeddings_of(model.decoder, inputs[numbers.start : numbers.stop])
    best = relevance_scores(queries, passages).topk(min(_RANK, len(passages))).indices.tolist()
    pairs = [(ranks, set(rows)) for ranks, rows in zip(best, right, strict=True)]
    first = sum(ranks[0] in rows for ranks, rows in pairs)
    among = sum(not rows.isdisjoint(ranks) for ranks, rows in pairs)
    return first / len(pairs), among / len(pairs)
