"""Ranking a corpus with the model in training, for hard negatives and for evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from imprag.corpus import Corpus
from imprag.index.passage_index import checked_embeddings
from imprag.model import ImpRAGModel, PassageEncoder
from imprag.model.text import prompt_batch
from imprag.training.distributed import gather_with_gradient, is_main_process, process_share
from imprag.training.objectives import relevance_scores

_PROMPTS = 64
_PASSAGES = 1024  # the encoder sorts them by length, which leaves little padding


class Ranking(NamedTuple):
    """The passages that score highest for each prompt, best first; (prompts, depth) each.

    Attributes:
        rows: rows of the corpus, int64.
        scores: float32.
    """

    rows: Tensor
    scores: Tensor


@torch.inference_mode()
def rank_corpus(
    model: ImpRAGModel,
    tokenizer: Any,
    corpus: Corpus,
    prompts: Sequence[str],
    depth: int,
    *,
    limit: int,
) -> Ranking:
    """Rank the passages of a corpus for prompts; passages with equal scores keep their order.

    All processes call it together. Each embeds a contiguous share of the corpus, in the batches of
    a single process, and searches it for all prompts; the best passages of all shares are merged.
    So the result is that of one process, and all processes have it. Nothing is stored.

    Embeddings are rounded to float16, as an index rounds them.

    Args:
        model: the model, in evaluation mode and with all its weights (`whole_weights`).
        tokenizer: its tokenizer.
        corpus: the passages.
        prompts: texts.
        depth: number of passages for each prompt; at most the size of the corpus.
        limit: the most tokens of a prompt.

    Raises:
        ImpRAGError: a prompt is empty or too long, or an embedding is not finite.
    """
    encode, device = PassageEncoder(model, tokenizer), model.device
    rows = torch.empty(len(prompts), 0, dtype=torch.long, device=device)
    best = Ranking(rows, rows.float())
    if not prompts:
        return best
    queries = gather_with_gradient(_queries(model, tokenizer, prompts, limit))
    for numbers in _progress(_batches(len(corpus), _PASSAGES)):
        embeddings = encode(corpus.passages(numbers))
        embeddings = checked_embeddings(embeddings, encode.dimension, "float16").astype("float16")
        scores = relevance_scores(queries, torch.from_numpy(embeddings).to(device))
        rows = torch.tensor(numbers, device=device).expand(len(prompts), -1)
        best = _best(depth, best, Ranking(rows, scores))
    shares = (gather_with_gradient(part.T.contiguous()).T for part in best)
    return _best(depth, Ranking(*shares))


def _queries(model: ImpRAGModel, tokenizer: Any, prompts: Sequence[str], limit: int) -> Tensor:
    """Query embeddings of this process's share of the prompts, (own prompts, h_k * d_h)."""
    parts = [torch.empty(0, model.embedding_dim, device=model.device)]
    for numbers in _batches(len(prompts), _PROMPTS):
        batch = prompt_batch(tokenizer, [prompts[n] for n in numbers], limit, model.device)
        parts.append(model.query_embeddings(*batch).float())
    return torch.cat(parts)


def _batches(count: int, size: int) -> list[range]:
    """This process's share of ``range(count)``, in batches."""
    share = process_share(count, size)
    return [range(n, min(n + size, share.stop)) for n in range(share.start, share.stop, size)]


def _best(depth: int, *parts: Ranking) -> Ranking:
    """The best of several rankings, whose equal scores are in order of their rows."""
    rows, scores = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :depth]
    return Ranking(rows.gather(1, order), scores.gather(1, order))


def _progress(batches: list[range]) -> "tqdm[range]":
    """A progress bar in the main process; on terminals only, and for long work."""
    silent = None if is_main_process() else True
    return tqdm(batches, desc="ranking passages", delay=2, disable=silent)
