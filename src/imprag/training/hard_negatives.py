"""Hard negative mining: the model in training ranks the corpus (paper, section 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path
from imprag.training.distributed import from_main_process, is_main_process
from imprag.training.ranking import rank_corpus
from imprag.training.recipe import LONGEST_TEXT
from imprag.training.step import TrainingModel


class HardNegativeMiner:
    """Ranks the corpus for prompts with the model in training, and stores the ranks in a folder.

    A resumed run reads the stored ranks, so that it continues with the same candidates. All
    processes mine together, each its share of the corpus; the main process stores the ranks.

    Args:
        model: the model in training; its weights change between calls.
        tokenizer: the model's tokenizer.
        corpus: the passages.
        folder: folder of the ranks.
        dtype: dtype that layers compute in; bfloat16 or float32.
    """

    def __init__(
        self, model: TrainingModel, tokenizer: Any, corpus: Corpus, folder: Path, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._corpus = corpus
        self._folder = folder
        self._dtype = dtype

    def __call__(self, prompts: Sequence[str], depth: int, step: int) -> npt.NDArray[np.int32]:
        """The corpus rows that rank first for each prompt, best first.

        Args:
            prompts: the prompts.
            depth: number of ranks; at most the size of the corpus.
            step: the training step; ranks that are stored for it are read instead of computed.

        Returns:
            (prompts, depth) int32.

        Raises:
            ImpRAGError: the stored ranks are damaged.
        """
        depth = min(depth, len(self._corpus))
        path = self._folder / f"step-{step}.safetensors"
        if from_main_process(path.exists()):
            return _read(path)
        rows = self._rank(prompts, depth)
        if is_main_process():
            with atomic_path(path) as temporary:
                save_file({"rows": rows}, temporary)
        return rows

    def _rank(self, prompts: Sequence[str], depth: int) -> npt.NDArray[np.int32]:
        device, low = self._model.model.device.type, self._dtype is not torch.float32
        with self._model.inference() as model, torch.autocast(device, self._dtype, enabled=low):
            ranking = rank_corpus(
                model, self._tokenizer, self._corpus, prompts, depth, limit=LONGEST_TEXT
            )
        return ranking.rows.cpu().numpy().astype(np.int32)


def _read(path: Path) -> npt.NDArray[np.int32]:
    try:
        rows: npt.NDArray[np.int32] = load_file(path)["rows"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ImpRAGError(f"{path} is damaged ({error}); delete it") from error
    return rows
