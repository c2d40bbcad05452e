"""Similarity of entity names by the base model's token embeddings."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imprag.training.data import TrainingSource
from imprag.training.samplers.sampling import NameVectors


def name_vectors(
    sources: Sequence[TrainingSource], lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> NameVectors:
    """Unit vectors of the names of all entities in grids.

    A vector is the mean of the name's token embeddings, less the mean over all names. Names are
    tokenized with a leading space, as within a sentence.
    """
    groups = {example.group for source in sources for example in source.examples}
    names = sorted({group[0] for group in groups if len(group) == 2})
    if not names:
        return {}
    weight = lm.get_input_embeddings().weight.detach().float().cpu()
    ids = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    vectors = torch.stack([weight[tokens].mean(0) for tokens in ids])
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    return dict(zip(names, vectors.double().numpy(), strict=True))
