"""How alike the names of entities are, before anything was learned about them."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imprag.training.data import TrainingSource
from imprag.training.samplers.sampling import NameVectors


def name_vectors(
    sources: Sequence[TrainingSource], lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> NameVectors:
    """The mean of each name's token embeddings, less the mean of all names, at length 1.

    The names are those of the entities of grids, as they stand within a sentence.
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
