"""Fits a model's retrieval to a corpus in minutes (beyond the paper).

Trains only layer b's query projection. Passage embeddings come from layer b's key projection and
stay as they are, and so does every index. The projection's inputs are computed once, and each
prompt has the whole corpus as negatives instead of the other passages of a batch.
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

_HELD_OUT = 0.05  # share of each source's prompts that recall is measured on
_MOST_HELD_OUT = 500
_MOST_PASSAGES = 200_000  # that are scored; each takes 4 bytes per prompt of a batch
_RANK = 10
_WARMUP_STEPS = 50


@dataclass(frozen=True)
class SourceRecall:
    """Recall on the held-out prompts of a source.

    Attributes:
        source: the source's name.
        prompts: number of held-out prompts.
        before, after: recall@1 and recall@10, before and after training.
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
    """Train layer b's query projection, in place.

    The loss is that of warmup (paper, equation 3), with every other passage as a negative.

    Args:
        model: the model, in float32.
        tokenizer: the model's tokenizer.
        corpus: the passages.
        index: the passages' embeddings by this model.
        sources: prompts with their positives; they are sampled by the sources' weights.
        steps: steps of AdamW.
        prompts: prompts in each step.
        learning_rate: the highest learning rate; it decays linearly to 0.
        wise_ft_alpha: weight of the trained projection: saved = (1 - alpha) · initial + alpha ·
            trained (:mod:`imprag.training.wise_ft`).
        seed: decides which prompts are held out and in which order the others are sampled.
        left_out: rows of the corpus that are neither positives nor negatives.
        kept: a cache file for the projection's inputs, which take most of the time. It is reused
            if it belongs to the same model and prompts: rerun after an interruption.

    Returns:
        recall before and after training, one for each source.

    Raises:
        ImpRAGError: the model has no separate query projection, a source has too few prompts, a
            setting is out of range, or the loss is not finite.
    """
    if steps < 1 or prompts < 1:
        raise ImpRAGError(f"steps and prompts must be at least 1, not {steps} and {prompts}")
    if not 0 < wise_ft_alpha <= 1:
        raise ImpRAGError(f"wise_ft_alpha must be above 0 and at most 1, not {wise_ft_alpha}")
    weight = query_projection(model)[1].weight
    sources = [usable(source, left_out) for source in sources]
    for source in sources:
        _check_size(source)
    examples = [example for source in sources for example in source.examples]
    rows = _rows(examples, corpus, left_out, seed)
    column_of = {row: column for column, row in enumerate(rows)}
    positives = [[column_of[row] for row in example.positives] for example in examples]
    ids = [passage.id for passage in corpus.passages(rows)]
    passages = torch.from_numpy(index.embeddings(ids)).to(model.device)
    encoder = PassageEncoder(model, tokenizer)
    inputs = _kept_inputs(encoder, [example.prompt for example in examples], kept)

    trained: list[range] = []
    held_out: list[range] = []
    start = 0
    for source in sources:
        size, count = len(source.examples), held_out_count(source)
        held_out.append(range(start, start + count))
        trained.append(range(start + count, start + size))
        start += size

    def recall(numbers: range) -> tuple[float, float]:
        return _recall(model, inputs, passages, [positives[n] for n in numbers], numbers)

    before = [recall(numbers) for numbers in held_out]
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
            loss = nce_against_all(scores, [positives[number] for number in batch])
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
        SourceRecall(source.name, len(numbers), first, recall(numbers))
        for source, numbers, first in zip(sources, held_out, before, strict=True)
    ]


def held_out_count(source: TrainingSource) -> int:
    """How many of the source's first prompts are held out."""
    return min(_MOST_HELD_OUT, max(1, int(_HELD_OUT * len(source.examples))))


def query_projection(model: ImpRAGModel) -> tuple[str, torch.nn.Linear]:
    """Layer b's query projection, by its name in the model and as a module.

    Raises:
        ImpRAGError: the model computes queries and keys with one projection.
    """
    start = f"{model.lm.base_model_prefix}.layers.{model.config.b}."
    for name, module in model.lm.named_modules():
        if name.startswith(start) and name.endswith(f".{QUERIES[0]}"):
            assert isinstance(module, torch.nn.Linear)
            return name, module
    raise ImpRAGError(
        f"{model.config.base_model} computes queries and keys with one projection, which cannot "
        "be trained without changing the passage embeddings"
    )


def usable(source: TrainingSource, left_out: frozenset[int] = frozenset()) -> TrainingSource:
    """The source without the left-out rows, and without examples that then have no positive."""
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
            f"the source '{source.name}' has too few prompts with a positive in the corpus: "
            f"{len(source.examples)}, where adapting needs {FEWEST_PROMPTS}; leave it out, or "
            "bring more prompts"
        )


def _rows(
    examples: Sequence[TrainingExample], corpus: Corpus, left_out: frozenset[int], seed: int
) -> list[int]:
    """Corpus rows to score: all positives and, of a large corpus, a sample of the others."""
    positives = {row for example in examples for row in example.positives}
    others = [row for row in range(len(corpus)) if row not in positives and row not in left_out]
    room = max(0, _MOST_PASSAGES - len(positives))
    if len(others) > room:
        others = random.Random(f"{seed} passages").sample(others, room)
    return sorted(positives.union(others))


def _kept_inputs(encoder: PassageEncoder, prompts: Sequence[str], kept: Path | None) -> Tensor:
    """`_inputs`, from the cache file if it holds them; otherwise computed and written to it."""
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
    """Inputs of layer b's query projection for the prompts, (prompts, hidden) float32."""
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
    positives: Sequence[Sequence[int]],
    numbers: range,
) -> tuple[float, float]:
    """Recall@1 and recall@10 of the prompts with these numbers."""
    queries = query_embeddings_of(model.decoder, inputs[numbers.start : numbers.stop])
    best = relevance_scores(queries, passages).topk(min(_RANK, len(passages))).indices.tolist()
    pairs = [(ranks, set(rows)) for ranks, rows in zip(best, positives, strict=True)]
    first = sum(ranks[0] in rows for ranks, rows in pairs)
    among = sum(not rows.isdisjoint(ranks) for ranks, rows in pairs)
    return first / len(pairs), among / len(pairs)
