"""Throughput of corpus encoding, as a ratio of the machine's matrix product rate.

    python benchmarks/encode.py                  # 1,024 factbook passages, 5 rounds
    python benchmarks/encode.py --passages 13600 --rounds 1 --json

Operations are counted as 2 x multiplied parameters x tokens, without padding: the linear layers of
layers 0..b-2, and the query, key and value projections of layer b-1, whose other parts run for one
token per passage, as layer b does. Attention scores and norms are not counted. Each round times the
machine's matrix product (2048 x 2048 x 2048 in the model's dtype) before and after encoding; the
result is the median of the rounds' ratios.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from imprag.corpus import load_corpus
from imprag.model import ImpRAGModel, PassageEncoder, load_pretrained
from imprag.model.text import passage_tokens


def matmul_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of a 2048 x 2048 x 2048 matrix product."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    for _ in range(3):
        a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return count * 2 * 2048**3 / (time.perf_counter() - start)


def bottom_parameters(model: ImpRAGModel) -> int:
    """Parameters of the linear layers that each token runs through to compute embeddings."""
    *whole, last = model.lm.base_model.layers[: model.config.b]
    projections = [getattr(last.self_attn, f"{name}_proj") for name in "qkv"]
    return sum(
        module.weight.numel()
        for part in (*whole, *projections)
        for module in part.modules()
        if isinstance(module, torch.nn.Linear)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="factbook")
    parser.add_argument("--passages", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    model, tokenizer = load_pretrained(arguments.model, arguments.dtype)
    corpus = load_corpus(arguments.corpus)
    rows = np.random.default_rng(0).permutation(len(corpus))[: arguments.passages]
    passages = corpus.passages(rows.tolist())
    encoder = PassageEncoder(model, tokenizer, arguments.batch_tokens)
    tokens = sum(map(len, passage_tokens(tokenizer, model.config, passages)))
    parameters = bottom_parameters(model)
    if arguments.compile:
        model.compile_bottom()
    encoder(passages)
    rounds = []
    for _ in range(arguments.rounds):
        before = matmul_rate(model.lm.dtype)
        start = time.perf_counter()
        encoder(passages)
        seconds = time.perf_counter() - start
        machine = (before + matmul_rate(model.lm.dtype)) / 2
        rounds.append((2 * parameters * tokens / seconds / machine, tokens / seconds, machine))
    ratio, speed, machine = (statistics.median(column) for column in zip(*rounds, strict=True))
    result = {
        "ratio": ratio,
        "ratios": [round(r, 3) for r, _, _ in rounds],
        "tokens_per_second": speed,
        "passages_per_second": speed * len(passages) / tokens,
        "matmul_gflops": machine / 1e9,
        "passages": len(passages),
        "tokens": tokens,
        "parameters": parameters,
        "compiled": arguments.compile,
        "dtype": str(model.lm.dtype),
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20s} {value:,.3f}" if isinstance(value, float) else f"{name:20s} {value}")


if __name__ == "__main__":
    main()
