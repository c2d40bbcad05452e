"""Throughput, latency and memory of the server under load, against in-context RAG.

    imprag tasks build factbook --out factbook-bench
    python benchmarks/serve.py --prompts factbook-bench/factbook/qa/dev.jsonl --out runs/serve

Starts `imprag serve` on a free port and talks to it by HTTP. Both arms answer the same prompts with
the same passages: "ImpRAG" retrieves and reads them from the KV cache in RAM, "in-context RAG" gets
their texts in the prompt and reads nothing else (k=0). Every answer has the same number of tokens,
so that tokens/s compare. The levels of concurrency and the arms take turns in every round; medians
of the rounds are reported. At the end, a long load checks errors and memory.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from imprag.corpus.prompt_files import prompts_of_file
from imprag.io.files import write_json

IMPRAG, IN_CONTEXT = "ImpRAG", "in-context RAG"


@dataclass(frozen=True)
class Measured:
    """One streamed answer.

    Attributes:
        first: seconds to the first text.
        tokens: number of its tokens.
        text: the answer.
    """

    first: float
    tokens: int
    text: str


@contextmanager
def server(arguments: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A running server: its address and its process."""
    command = [sys.executable, "-m", "imprag", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        if address is None:
            raise SystemExit("the server did not start")
        yield address[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def ask(url: str, body: dict[str, Any]) -> Measured:
    """Stream one answer.

    The reply is read as bytes and taken apart at its end: a client that parses every piece would
    take a good part of a small machine's time.
    """
    body = {**body, "stream": True, "stream_options": {"include_usage": True}, "stop": []}
    content = json.dumps(body).encode()
    host = url.removeprefix("http://")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    name, _, port = host.rpartition(":")
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(head.encode() + content)
        received, first = b"", 0.0
        while part := await reader.read(2**16):
            received += part
            if not first and received.count(b"data: {") > 1:  # the first chunk has no text
                first = time.perf_counter() - start
    finally:
        writer.close()
    if not received.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(received.decode(errors="replace"))
    chunks = [json.loads(line) for line in re.findall(rb"^data: (\{.*\})", received, re.MULTILINE)]
    if "error" in chunks[-1]:
        raise RuntimeError(chunks[-1]["error"]["message"])
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    return Measured(first, chunks[-1]["usage"]["completion_tokens"], text)


async def load(
    url: str, bodies: Sequence[dict[str, Any]], clients: int, note: Any = None
) -> tuple[list[Measured], float, list[str]]:
    """Answers by that many clients at once, each asking one prompt after the other.

    Returns:
        the answers in the order of the bodies that succeeded, the seconds, and the errors.
    """
    numbers = iter(range(len(bodies)))
    answers: dict[int, Measured] = {}
    errors: list[str] = []

    async def one_client() -> None:
        for number in numbers:
            try:
                answers[number] = await ask(url, bodies[number])
            except (OSError, RuntimeError) as error:
                errors.append(f"{type(error).__name__}: {error}")
            if note is not None:
                note(len(answers) + len(errors))

    start = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    return [answers[n] for n in sorted(answers)], time.perf_counter() - start, errors


def in_context(template: str, passages: Sequence[dict[str, Any]], prompt: str) -> str:
    """A prompt with the texts of its passages, the best one last, as RAG systems write them."""
    texts = [template.format(title=one["title"], text=one["text"]) for one in passages]
    return "\n\n".join([*reversed(texts), prompt])


async def both_arms(
    client: httpx.AsyncClient, prompts: Sequence[str], given: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """The bodies of both arms; asking for the passages also fills the KV cache."""
    length = {"max_tokens": given.tokens}
    options = {"k": given.k, "min_tokens": given.tokens}
    arms: dict[str, list[dict[str, Any]]] = {IMPRAG: [], IN_CONTEXT: []}
    for prompt in prompts:
        body = {"prompt": prompt, "max_tokens": 1, "imprag": {"k": given.k}}
        reply = (await client.post("/v1/completions", json=body)).raise_for_status().json()
        read = reply["imprag"]["passages"]
        arms[IMPRAG].append({"prompt": prompt, **length, "imprag": options})
        text = in_context("{title}\n{text}", read, prompt)
        arms[IN_CONTEXT].append({"prompt": text, **length, "imprag": {**options, "k": 0}})
    return arms


def summary(answers: Sequence[Measured], seconds: float) -> dict[str, float]:
    """Tokens per second, and the middle and the 95th percentile of the first token's time."""
    firsts = sorted(answer.first for answer in answers)
    return {
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
        "first_token_p50_s": statistics.median(firsts),
        "first_token_p95_s": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


async def measure(url: str, process: psutil.Process, given: argparse.Namespace) -> dict[str, Any]:
    """All measurements at a running server."""
    prompts = prompts_of_file(given.prompts)[: given.limit]
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        arms = await both_arms(client, prompts, given)
    arms[IN_CONTEXT] = arms[IN_CONTEXT][: given.in_context_limit]
    rounds: dict[str, list[dict[str, float]]] = {}
    texts: dict[str, list[str]] = {}
    for _ in range(given.rounds):
        for (arm, bodies), clients in itertools.product(arms.items(), given.clients):
            name = f"{arm}, {clients} at once"
            answers, seconds, errors = await load(url, bodies, clients)
            if errors:
                raise SystemExit(f"{name}: {errors[0]}")
            rounds.setdefault(name, []).append(summary(answers, seconds))
            texts.setdefault(name, [answer.text for answer in answers])
            print(name, rounds[name][-1], flush=True)
    levels = {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in rounds.items()
    }
    memory: list[int] = []
    several = [
        {**body, "max_tokens": given.load_tokens, "imprag": {"k": given.k}}
        for body in itertools.islice(itertools.cycle(arms[IMPRAG]), given.requests)
    ]
    answers, seconds, errors = await load(
        url, several, given.in_flight, lambda done: memory.append(process.memory_info().rss)
    )
    least, most = min(given.clients), max(given.clients)

    def rate(arm: str, clients: int) -> float:
        return levels[f"{arm}, {clients} at once"]["tokens_per_s"]

    return {
        "levels": levels,
        "tokens_per_s_ratio": rate(IMPRAG, most) / rate(IMPRAG, least),
        "against_in_context": {n: rate(IMPRAG, n) / rate(IN_CONTEXT, n) for n in (least, most)},
        "same_answers": sum(
            a == b
            for a, b in zip(
                texts[f"{IMPRAG}, {least} at once"],
                texts[f"{IMPRAG}, {most} at once"],
                strict=True,
            )
        ),
        "prompts": len(prompts),
        "load": {
            "requests": given.requests,
            "in_flight": given.in_flight,
            "errors": errors,
            "resident_mb": {n: memory[n - 1] / 1e6 for n in (given.requests // 5, given.requests)},
            "growth": memory[-1] / memory[given.requests // 5 - 1] - 1,
            **(summary(answers, seconds) if answers else {}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=Path, required=True, help="as for imprag ask -")
    parser.add_argument("--limit", type=int, default=64, help="prompts")
    parser.add_argument("--in-context-limit", type=int, default=16, help="of the slower arm")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--clients", type=int, nargs=2, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--load-tokens", type=int, default=16, help="of an answer in the long load")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--serve", nargs="*", default=["--dtype", "float32", "--kv-ram", "6"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    with server(given.serve) as (url, process):
        found = asyncio.run(measure(url, process, given))
    found["settings"] = {key: str(value) for key, value in vars(given).items()}
    found["threads"] = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "serve.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
