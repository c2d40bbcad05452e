"""What a large GPU makes of ImpRAG: exactness, encoding, first token, training step, many streams.

    benchmarks/gpu.sh                 # all parts, under eight minutes on one large GPU
    benchmarks/gpu.sh --tiny          # the same on tiny shapes, on any machine

Models have random weights in the shapes of Llama-3.1-8B and Llama-3.2-3B, so that nothing has to be
downloaded; times do not depend on what the weights are. Parts are written to the file as soon as
they are measured, and a part that fails leaves its error there. Rates of matrix products are
measured in the same run.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from imprag.io.files import write_json
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.decoding import DecodingBatch, prefill
from imprag.model.generate import PromptTokens, fixed
from imprag.model.kv import PassageKV, RowKV

SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8},
}
LARGE = {
    "passages": 2048,
    "contexts": (5_000, 16_000, 32_000),
    "streams": 64,
    "prompts": 32,
    "product": 8192,
    "rounds": 10,
}
TINY = {
    "passages": 8,
    "contexts": (200, 400),
    "streams": 4,
    "prompts": 2,
    "product": 256,
    "rounds": 1,
}
PASSAGE = 128  # tokens
PROMPT = 32


class Bench:
    """The measurements.

    Args:
        device: where models run.
        dtype: of the large models.
        tiny: replace all shapes by tiny ones.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, tiny: bool) -> None:
        self.device = device
        self.dtype = dtype
        self.tiny = tiny
        self.sizes: dict[str, Any] = TINY if tiny else LARGE

    def model(self, shape: str, dtype: torch.dtype | None = None, **settings: Any) -> ImpRAGModel:
        """A model of a shape with random weights."""
        values = {
            "vocab_size": 128_256,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
            **SHAPES["small" if self.tiny else shape],
        }
        if self.tiny or shape == "small":
            values |= {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(**values)
        layers = values["num_hidden_layers"]
        torch.manual_seed(0)
        with self.device:
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype or self.dtype).eval()
        layout = {"b": layers // 4 - 1, "t": 3 * layers // 4, **settings}
        return ImpRAGModel(lm, ImpRAGConfig(base_model=shape, **layout), checked=True)

    def tokens(self, *shape: int) -> Tensor:
        """Random token ids."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(3, 500, shape, generator=generator).to(self.device)

    def rows(self, count: int, length: int = PASSAGE) -> list[list[int]]:
        """Random passages."""
        found: list[list[int]] = self.tokens(count, length).tolist()
        return found

    def seconds(self, work: Callable[[], object], rounds: int | None = None) -> float:
        """The median time of some work, after a first time; tiny work has one round."""
        work()
        times = []
        for _ in range(1 if self.tiny else rounds or self.sizes["rounds"]):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def product_rate(self) -> float:
        """Operations per second of a square matrix product in the large models' dtype."""
        n = self.sizes["product"]
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: a @ b)

    # The parts

    def exactness(self) -> dict[str, float]:
        """Greatest differences from float64 on the CPU, of logits and gradients."""
        found = {}
        with _on(self, torch.device("cpu")):
            model = self.model("small", torch.float64)
            expected = self._logits_and_gradients(model)
            weights = model.lm.state_dict()
        for dtype in (torch.float32, torch.bfloat16):
            model = self.model("small", dtype)
            model.lm.load_state_dict(weights)
            for name, own, wanted in zip(
                ("logits", "gradient"),
                self._logits_and_gradients(model),
                expected,
                strict=True,
            ):
                scale = wanted.abs().max()
                difference = (own.double().cpu() - wanted).abs().max() / scale
                found[f"{name}, {str(dtype).removeprefix('torch.')}"] = float(difference)
        return found

    def _logits_and_gradients(self, model: ImpRAGModel) -> tuple[Tensor, Tensor]:
        passages = [self.rows(3, 20), self.rows(2, 20)]
        ids = self.tokens(2, PROMPT).to(model.device)
        kv = model.encode_passages(passages)
        logits = model(ids, torch.ones_like(ids), fixed(kv), position_shift=60).logits
        logits.float().logsumexp(-1).mean().backward()
        layer = model.decoder.layer(model.config.b + 1)
        gradient = layer.self_attn.k_proj.weight.grad
        assert isinstance(gradient, Tensor)
        return logits.detach(), gradient

    def encoding(self) -> dict[str, float]:
        """Passages of 128 tokens that layers 0..7 embed in a second."""
        model = self.model("8B", **({} if self.tiny else {"b": 7}))
        count = self.sizes["passages"]
        ids = self.tokens(count, PASSAGE)
        batch = 512

        @torch.inference_mode()
        def embed() -> None:
            for start in range(0, count, batch):
                part = ids[start : start + batch]
                model.passage_embeddings(part, torch.ones_like(part))

        seconds = self.seconds(embed, 3)
        layer = sum(one.numel() for one in model.decoder.layer(0).parameters())
        operations = 2 * layer * model.config.b * count * PASSAGE
        return {
            "passages_per_s": count / seconds,
            "of_product_rate": operations / seconds / self.product_rate(),
        }

    def first_token(self) -> dict[str, dict[str, float]]:
        """Seconds to the first token: passages as stored KV, and in the context."""
        model = self.model("8B")
        prompt = self.tokens(1, PROMPT)
        found = {}
        for length in self.sizes["contexts"]:
            passages = self.rows(length // PASSAGE)
            shift = PASSAGE * len(passages)
            kv = self._kv(model, passages)
            texts = torch.tensor(passages, device=self.device).view(1, -1)
            whole = torch.cat([texts, prompt], 1)

            @torch.inference_mode()
            def stored(kv: PassageKV = kv, shift: int = shift) -> None:
                ones = torch.ones_like(prompt)
                model(prompt, ones, fixed(kv), position_shift=shift, logits_to_keep=1)

            @torch.inference_mode()
            def in_context(whole: Tensor = whole) -> None:
                model.lm(input_ids=whole, logits_to_keep=1)

            times = {"stored_s": self.seconds(stored), "in_context_s": self.seconds(in_context, 3)}
            ratio = times["in_context_s"] / times["stored_s"]
            found[f"{length} tokens"] = {**times, "times_faster": ratio}
        return found

    @torch.inference_mode()
    def _kv(self, model: ImpRAGModel, passages: list[list[int]]) -> PassageKV:
        return model.encode_passages([passages])

    def training_step(self) -> dict[str, float]:
        """Forward and backward of prompts that read ten passages each, every layer trained."""
        model = self.model("3B").train()
        prompts = self.sizes["prompts"]
        passages = self.rows(2 * prompts)
        read = [[passages[(n + i) % len(passages)] for i in range(10)] for n in range(prompts)]
        ids = self.tokens(prompts, 2 * PROMPT)

        def step() -> None:
            kv = model.encode_passages(read)
            output = model(ids, torch.ones_like(ids), fixed(kv), position_shift=10 * PASSAGE)
            torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
            ).backward()
            model.zero_grad(set_to_none=True)

        seconds = self.seconds(step, 3)
        layer = sum(one.numel() for one in model.decoder.layer(0).parameters())
        head = model.lm.get_output_embeddings().weight.numel()
        run = (model.config.t + 1) * len(passages) * PASSAGE
        run += len(model.lm.base_model.layers) * ids.numel()
        operations = 6 * (layer * run + head * ids.numel())
        return {"seconds": seconds, "of_product_rate": operations / seconds / self.product_rate()}

    def streams(self) -> dict[str, float]:
        """Tokens per second of one answer and of many at once, each over ten passages."""
        model = self.model("8B")
        found = {}
        for count in (1, self.sizes["streams"]):
            with torch.inference_mode():
                kv = RowKV([self._kv(model, self.rows(10)) for _ in range(count)])
                ids = self.tokens(count, PROMPT)
                prompts = PromptTokens(ids, torch.ones_like(ids), 10 * PASSAGE)
                batch = DecodingBatch(model.decoder)
                batch.join(prefill(model.decoder, lambda queries, kv=kv: kv, prompts))
            tokens = [5] * count
            seconds = self.seconds(lambda batch=batch, tokens=tokens: batch.step(tokens), 32)
            found[f"tokens_per_s, {count} at once"] = count / seconds
        return found


class _on:
    """Let a bench work on another device for a while."""

    def __init__(self, bench: Bench, device: torch.device) -> None:
        self.bench, self.device = bench, device

    def __enter__(self) -> None:
        self.bench.device, self.device = self.device, self.bench.device

    def __exit__(self, *error: object) -> None:
        self.bench.device = self.device


PARTS = ("exactness", "encoding", "first_token", "training_step", "streams")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on any machine")
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.tiny:
        raise SystemExit("there is no GPU: give --tiny, which tests this script on a CPU")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bench = Bench(device, dtype, given.tiny)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": given.tiny}
    result["product_tflops"] = bench.product_rate() / 1e12
    for part in given.parts:
        began = time.perf_counter()
        try:
            result[part] = getattr(bench, part)()
        except (RuntimeError, AssertionError) as error:  # such as no memory
            result[part] = {"error": " ".join(str(error).split())[:500]}
        result[part]["took_s"] = time.perf_counter() - began
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write_json(given.out, result)
        print(part, json.dumps(result[part]), flush=True)


if __name__ == "__main__":
    main()
