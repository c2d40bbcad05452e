"""Hard negative mining: the model in training ranks the corpus (paper, section 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.files import atomic_path
from imprag.model import ImpRAGModel, PassageEncoder
from imprag.model.text import prompt_batch
from imprag.training.recipe import LONGEST_TEXT

_BATCH = 64


class HardNegativeMiner:
    """Ranks the corpus for prompts with the model in training, and stores the ranks in a folder.

    A resumed run reads the stored ranks, so that it continues with the same candidates. The main
    process mines; the others wait for it.

    Args:
        model: the model in training; its weights change between calls.
        tokenizer: the model's tokenizer.
        corpus: the passages.
        folder: folder of the ranks, and of a temporary index.
        dtype: dtype that layers compute in; bfloat16 or float32.
    """

    def __init__(
        self, model: ImpRAGModel, tokenizer: Any, corpus: Corpus, folder: Path, dtype: torch.dtype
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
        with PartialState().main_process_first():
            if not path.exists():
                rows = self._rank(prompts, depth)
                with atomic_path(path) as temporary:
                    save_file({"rows": rows.astype(np.int32)}, temporary)
            try:
                stored: npt.NDArray[np.int32] = load_file(path)["rows"]
            except (OSError, KeyError, SafetensorError) as error:
                raise ImpRAGError(f"{path} is damaged ({error}); delete it") from error
        return stored

    def _rank(self, prompts: Sequence[str], depth: int) -> npt.NDArray[np.int64]:
        model, training = self._model, self._model.training
        encoder = PassageEncoder(model, self._tokenizer)
        device, low = model.device, self._dtype is not torch.float32
        model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, self._dtype, enabled=low),
                IndexFolder.temporary(self._corpus, encoder, self._folder / ".index") as index,
            ):
                rows = []
                starts = range(0, len(prompts), _BATCH)
                for start in tqdm(starts, desc="hard negatives", delay=2, disable=None):
                    batch = prompts[start : start + _BATCH]
                    queries = model.query_embeddings(
                        *prompt_batch(self._tokenizer, batch, LONGEST_TEXT, device)
                    )
                    rows.append(index.search(queries.cpu().numpy(), depth)[0])
            return np.concatenate(rows)
        finally:
            model.train(training)
