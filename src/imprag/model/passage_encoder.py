"""Embedding many passages with layers 0..b."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from imprag.corpus.passage import Passage
from imprag.model.fingerprint import model_fingerprint
from imprag.model.inputs import batches_by_length, pad
from imprag.model.load_checks import check_tokenizer
from imprag.model.model import ImpRAGModel
from imprag.model.text import cut_tokens, passage_settings, passage_tokens


class PassageEncoder:
    """Maps passages to embeddings; builds the embeddings of an index.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        batch_tokens: tokens in one batch, padding included; passages of similar length share one.
            Small batches fit a CPU's caches, a GPU needs about 100,000.
    """

    def __init__(self, model: ImpRAGModel, tokenizer: Any, batch_tokens: int | None = None) -> None:
        check_tokenizer(tokenizer, model.lm, model.config.base_model)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 131072)

    @property
    def dimension(self) -> int:
        """Size of an embedding: h_k * d_h."""
        return self.model.embedding_dim

    def fingerprint(self) -> str:
        """Fingerprint of everything that an embedding depends on.

        It covers the weights of layers 0..b and the model's configuration, the tokenizer, the
        settings and the encoding of texts. Layer b's query projection is left out: training it does
        not invalidate an index.
        """
        config = self.model.config
        return model_fingerprint(
            self.model.lm,
            self.tokenizer,
            config.b + 1,
            last_queries=False,
            settings=passage_settings(self.tokenizer, config),
        )

    @property
    def max_passage_tokens(self) -> int:
        """Greatest length of a passage in tokens; the rest is cut."""
        return self.model.config.max_passage_tokens

    def cut_tokens(self, passages: Sequence[Passage]) -> list[int]:
        """The number of tokens at the end of each passage that are neither embedded nor read."""
        return cut_tokens(self.tokenizer, self.model.config, passages)

    @torch.inference_mode()
    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        """Embeddings of ``passages``, (len(passages), h_k * d_h) float32."""
        rows = passage_tokens(self.tokenizer, self.model.config, passages)
        embeddings = np.empty((len(rows), self.dimension), dtype=np.float32)
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            ids, mask = pad([rows[i] for i in batch], self.model.device)
            embeddings[batch] = self.model.passage_embeddings(ids, mask).cpu().numpy()
        return embeddings
