"""Batch samplers: which examples and passages make a batch; `register_sampler` adds one.

Packages offer theirs under the entry-point group ``imprag.samplers``; a recipe names one as
``batch.sampler``.
"""

from imprag.training.samplers.base import (
    SAMPLERS,
    BatchIndices,
    LaterIndices,
    Sampler,
    make_sampler,
    register_sampler,
)

__all__ = [
    "SAMPLERS",
    "BatchIndices",
    "LaterIndices",
    "Sampler",
    "make_sampler",
    "register_sampler",
]
