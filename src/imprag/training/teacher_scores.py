"""The teacher's scores over all passages of a batch, which retrieval can learn from (warmup)."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprag.corpus import Corpus
from imprag.index.teacher import TextEncoder
from imprag.training.batching import copied_columns
from imprag.training.distributed import gather_with_gradient
from imprag.training.objectives import relevance_scores
from imprag.training.step import TrainingBatch

_KEPT = 2**17  # embeddings of passages; 200 MB of 384 dimensions


class TeacherScores:
    """A bi-encoder's scores of every prompt for every passage of a batch.

    Only what comes in a batch is ever embedded, and what is in several is embedded once. Under
    DDP and FSDP each process embeds its own prompts and passages.

    Args:
        encoder: the teacher.
        corpus: that batches take their passages from.
        device: where processes exchange embeddings.
    """

    def __init__(self, encoder: TextEncoder, corpus: Corpus, device: torch.device) -> None:
        self._encoder = encoder
        self._corpus = corpus
        self._device = device
        # By row, the oldest first.
        self._kept: OrderedDict[int, npt.NDArray[np.float32]] = OrderedDict()

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """The scores, for :func:`~imprag.training.objectives.score_distillation_loss`.

        Args:
            batch: a process's own part.

        Returns:
            (Q, C) float32; NaN for a prompt that retrieves nothing, and for the second column of a
            passage that stands in two shards.
        """
        device = self._device
        retrieving = batch.positive.any(dim=1)
        texts = [batch.texts[n] for n in retrieving.nonzero()[:, 0].tolist()]
        own = batch.columns[batch.first_column : batch.first_column + len(batch.passages)]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            passages = gather_with_gradient(torch.from_numpy(self._passages(own)).to(device))
            prompts = torch.from_numpy(self._embed(texts)).to(device)
            scores = torch.full(batch.positive.shape, torch.nan, device=device)
            scores[retrieving.to(device)] = relevance_scores(prompts, passages)
        scores[:, torch.tensor(copied_columns(batch.columns), dtype=torch.bool)] = torch.nan
        return scores

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if not texts:
            return np.empty((0, self._encoder.dimension), np.float32)
        return self._encoder.queries(texts)

    def _passages(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Embeddings of passages, (rows, dimension)."""
        embeddings = np.empty((len(rows), self._encoder.dimension), np.float32)
        if lacking := [row for row in rows if row not in self._kept]:
            made = self._encoder(self._corpus.passages(lacking))
            self._kept.update(zip(lacking, made, strict=True))
        for n, row in enumerate(rows):
            embeddings[n] = self._kept[row]
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return embeddings
