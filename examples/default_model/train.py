"""``imprag train`` with one more batch sampler: grids of entities with similar names.

    python examples/default_model/train.py RECIPE OUT [OPTIONS OF imprag train]

Recipes choose it as ``batch.sampler: similar_names``. Each entity is then a hard negative for the
others of its grid (beyond the paper).
"""

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from imprag.cli import main
from imprag.model import load_base_model
from imprag.training.samplers import register_sampler
from imprag.training.samplers.batch_sampler import BatchSampler

BASE = "smollm2-135m"
"""The model whose token embeddings say which names are similar."""


@register_sampler("similar_names")
class SimilarNames(BatchSampler):
    """The sampler ``mixture`` whose grids hold entities with similar names."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        groups = {example.group for example in self.examples}
        self.vectors = name_vectors(sorted({group[0] for group in groups if len(group) == 2}))

    def group_entities(
        self, entities: Sequence[str], size: int, generator: random.Random
    ) -> list[Sequence[str]]:
        """Halves the entities, and the halves again, between two of them that are drawn."""
        if len(entities) <= size:
            return super().group_entities(entities, size, generator)
        one, other = generator.sample(entities, 2)
        direction = self.vectors[one] - self.vectors[other]
        ranked = sorted(entities, key=lambda name: float(self.vectors[name] @ direction))
        groups = -(-len(ranked) // size)
        middle = len(ranked) * (groups // 2) // groups
        return [
            group
            for half in (ranked[:middle], ranked[middle:])
            for group in self.group_entities(half, size, generator)
        ]


def name_vectors(names: Sequence[str]) -> Mapping[str, npt.NDArray[np.floating]]:
    """A unit vector of each name; similar names have similar vectors.

    A vector is the mean of the name's token embeddings, less the mean over all names. Names are
    tokenized with a leading space, as within a sentence.
    """
    if not names:
        return {}
    lm, tokenizer = load_base_model(BASE, torch.float32)
    weight = lm.get_input_embeddings().weight.detach().cpu()
    ids = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    vectors = torch.stack([weight[tokens].mean(0) for tokens in ids])
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    return dict(zip(names, vectors.double().numpy(), strict=True))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} RECIPE OUT [OPTIONS OF imprag train]")
    recipe, out, *options = sys.argv[1:]
    sys.exit(main(["train", "--config", recipe, "--out", out, *options]))
