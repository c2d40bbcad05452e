"""The arms of the speed benchmark: forms of ImpRAG, and in-context RAG with the same model."""

import time
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from imprag.generation import passage_kv
from imprag.model.generate import compile_config
from imprag.model.linear import plain_products
from imprag.model.model import ImpRAGModel
from imprag.model.text import passage_tokens, prompt_batch
from imprag.pipeline import ImpRAG
from imprag.retrieval.dense import DenseRetriever

NEW_TOKENS = 16
RAG = "in-context RAG"
NONE = "no retrieval"
LIVE = "ImpRAG, live"
FULL = "ImpRAG, full"
CODED = "ImpRAG, stored pq, kept coded"
COMPILED = ", compiled"
"""Behind the name of an arm whose new tokens after the first are made by a compiled pass."""


def stored(codec: str) -> str:
    """The name of the arm that reads a KV cache of this codec."""
    return f"ImpRAG, stored {codec}"


class Arm(Protocol):
    """One way to answer."""

    def __call__(self, prompt: str, stamps: "Stamps") -> None:
        """Answer with ``NEW_TOKENS`` new tokens; ``stamps`` is told of each."""

    def kv_bytes(self, prompt: str) -> int:
        """Keys and values that the answer's last token attends to, in bytes."""


class Stamps(LogitsProcessor):  # type: ignore[misc]
    """Notes when each new token's scores are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores as they are."""
        self.times.append(time.perf_counter())
        return scores


class ReadingArm:
    """ImpRAG: live or stored, or without passages.

    Args:
        rag: with its KV cache.
        k: passages.
    """

    def __init__(self, rag: ImpRAG, k: int) -> None:
        self.rag = rag
        self.k = k

    def __call__(self, prompt: str, stamps: Stamps) -> None:
        """Answer."""
        self.rag.ask(
            prompt,
            self.k,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            stop=(),
            logits_processor=LogitsProcessorList([stamps]),
            raw=True,
        )

    def kv_bytes(self, prompt: str) -> int:
        """The passages' at layers b..t, and the prompt's and answer's own at all layers."""
        ids, _ = prompt_batch(self.rag.tokenizer, [prompt], 10**6, torch.device("cpu"))
        own = (ids.shape[1] + NEW_TOKENS) * _token_bytes(self.rag.model)
        if not self.k:
            return own
        found = self.rag.retrieve([prompt], self.k, raw=True)
        return own + passage_kv(self.rag, found).nbytes


class InContextArm:
    """In-context RAG, by transformers' own model and ``generate``.

    Args:
        model: whose language model answers, as it is.
        tokenizer: its tokenizer.
        teacher: retrieves.
        k: passages.
        compiled: decode with transformers' static cache and compiled pass.
    """

    def __init__(
        self,
        model: ImpRAGModel,
        tokenizer: Any,
        teacher: DenseRetriever,
        k: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.k = k
        self.arguments = {}
        if compiled:
            self.arguments = {"cache_implementation": "static", "compile_config": compile_config()}

    def __call__(self, prompt: str, stamps: Stamps) -> None:
        """Answer."""
        ids = self._input(prompt)
        with plain_products(self.model.lm):
            self.model.lm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                eos_token_id=None,
                do_sample=False,
                logits_processor=LogitsProcessorList([stamps]),
                **self.arguments,
            )

    def kv_bytes(self, prompt: str) -> int:
        """Those of all tokens at all layers."""
        return (self._input(prompt).shape[1] + NEW_TOKENS) * _token_bytes(self.model)

    def _input(self, prompt: str) -> Tensor:
        found = [one.passage for one in self.teacher.retrieve([prompt], self.k)[0]]
        device = self.model.device
        own, _ = prompt_batch(self.tokenizer, [prompt], 10**6, device)
        passages = passage_tokens(self.tokenizer, self.model.config, found)
        context = torch.tensor([[token for row in passages for token in row]], device=device)
        return torch.cat([context, own], dim=1)


def _token_bytes(model: ImpRAGModel) -> int:
    """Keys and values of one token at all layers."""
    size: int = model.lm.dtype.itemsize
    return 2 * len(model.lm.base_model.layers) * model.embedding_dim * size
