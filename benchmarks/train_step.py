"""Throughput of the training step, as a ratio of the machine's matrix product rate.

    imprag tasks build factbook --out factbook-bench
    python benchmarks/train_step.py --config configs/smollm2-factbook.yaml

Operations are counted as 6 x parameters x tokens of the layers that run, without padding: passages
that are read in layers 0..t; other passages and prompts that only retrieve in layers 0..b-2 and the
projections of layer b-1; generated prompts in all layers; the head on response tokens. Attention,
norms, single tokens at layers b-1 and b, and the optimizer are timed but not counted. Batches come
from the middle of the recipe's run. Each step times the machine's matrix product before and after
(2048 x 2048 x 2048 in bfloat16, or in float32 for fp32 recipes); the result is the median of the
steps' ratios.
"""

import argparse
import json
import statistics
import time

import torch

from encode import bottom_parameters, matmul_rate
from imprag.corpus import load_corpus
from imprag.model import ImpRAGModel, load_base_model
from imprag.training.batches import Batches
from imprag.training.data import load_sources
from imprag.training.recipe_file import load_recipe
from imprag.training.samplers.batch_sampler import BatchSampler
from imprag.training.schedule import Schedule
from imprag.training.step import TrainingBatch, TrainingModel


def operations(model: TrainingModel, batch: TrainingBatch) -> float:
    """Operations of a batch: 6 x parameters x tokens."""
    imprag_model = model.model
    layers = [
        sum(m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear))
        for layer in imprag_model.lm.base_model.layers
    ]
    bottom, reading = bottom_parameters(imprag_model), sum(layers[: imprag_model.config.t + 1])
    head = imprag_model.lm.get_output_embeddings().weight.numel()
    read = {passage for passages in batch.candidates for passage in passages}
    total = 0.0
    for number, passage in enumerate(batch.passages):
        total += len(passage) * (reading if number in read else bottom)
    for prompt, response in zip(batch.prompts, batch.responses, strict=True):
        tokens = len(prompt) + len(response)
        total += tokens * (sum(layers) if response else bottom) + len(response) * head
    return 6 * total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.config, arguments.set)
    corpus = load_corpus(recipe.corpus)
    sampler = BatchSampler(load_sources(recipe, corpus), recipe.batch, corpus, recipe.seed)
    schedule = Schedule(recipe, recipe.steps(len(sampler.examples)))
    lm, tokenizer = load_base_model(recipe.model.base, torch.float32)
    if recipe.train.freeze_embeddings:
        lm.get_input_embeddings().requires_grad_(False)
    model = TrainingModel(ImpRAGModel(lm, recipe.model.to_config()), recipe.stages).train()
    batches = Batches(sampler, schedule, corpus, tokenizer, recipe)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    device = model.model.device.type

    def step(batch: TrainingBatch) -> float:
        start = time.perf_counter()
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.trainer["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    first = len(batches) // 2
    step(batches[first])
    ratios, seconds, tokens = [], [], []
    for number in range(first + 1, first + 1 + arguments.steps):
        batch = batches[number]
        before = matmul_rate(dtype, 0.5)
        seconds.append(step(batch))
        machine = (before + matmul_rate(dtype, 0.5)) / 2
        ratios.append(operations(model, batch) / seconds[-1] / machine)
        rows = [*batch.passages, *batch.prompts, *batch.responses]
        tokens.append(sum(map(len, rows)) / seconds[-1])
    result = {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": statistics.median(tokens),
        "steps": arguments.steps,
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
