"""Which directions of keys matter: the second moments of the queries that meet them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imprag.corpus import Passage
from imprag.model.encode import batches
from imprag.model.hooks import RecordingLayer, capture
from imprag.model.model import ImpRAGModel
from imprag.model.text import passage_tokens


@torch.no_grad()
def query_moments(model: ImpRAGModel, tokenizer: Any, passages: Sequence[Passage]) -> Tensor:
    """Second moments M of queries, relative to keys from before the rotary embedding.

    An error e of a key changes the attention logits by e·M·e in the mean square. The queries of the
    passages' own tokens stand for those of prompts; they are rotated by the distances at which
    prompts see passages.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        passages: some dozens of passages.

    Returns:
        (layers, key heads, d_h, d_h) float32.
    """
    decoder, config = model.decoder, model.config
    layers = range(config.b, config.t + 1)
    shift = config.position_shift(config.k)
    rows = passage_tokens(tokenizer, config, passages)
    total = torch.zeros(
        len(layers), decoder.num_key_heads, decoder.head_dim, decoder.head_dim, device=model.device
    )
    for _, batch in batches(rows, [0] * len(rows), model.device):
        recorders = {number: RecordingLayer(decoder.layer(number)) for number in layers}
        decoder.run(recorders, config.t + 1, *batch)
        seen = batch.attention_mask.bool()
        count = int(seen.sum())
        distances = shift - torch.arange(count) % config.max_passage_tokens
        for place, number in enumerate(layers):
            given = recorders[number].input.without_rotation()
            queries = capture(decoder.layer(number), given, stop=True).query
            own = queries.transpose(1, 2)[seen].transpose(0, 1)[None]  # (1, heads, tokens, d_h)
            turned = model.key_rotation.rotate(own, distances, slice(place, place + 1))[0].float()
            grouped = turned.reshape(decoder.num_key_heads, -1, decoder.head_dim)
            total[place] += grouped.mT @ grouped
    tokens = sum(map(len, rows)) * (decoder.num_heads // decoder.num_key_heads)
    return total.cpu() / (tokens * decoder.head_dim)
