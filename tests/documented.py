"""What README, docs and the commands' help tell users to type, and a place to type it in."""

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from conftest import tiny_lm, tiny_tokenizer
from imprag.baselines.folder import Baseline
from imprag.corpus import Corpus, read_passages
from imprag.index.folder import IndexFolder
from imprag.index.stored_embeddings import write_embeddings
from imprag.io.files import sha256, write_json
from imprag.kv_cache import build_kv_cache
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.model.load import EMBEDDINGS
from imprag.model.passage_encoder import PassageEncoder

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *(page for folder in ("docs", "examples") for page in sorted(ROOT.glob(f"{folder}/**/*.md"))),
]
PROGRAMS = ("imprag", "make", "python", "torchrun", "pip")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(imprag [^`\n]+)`")
_RECORDER = (
    '#!/bin/sh\nprintf \'%s\\0\' "$(basename "$0")" "$@" >> calls\nprintf \'\\n\\0\' >> calls\n'
)


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> Iterator[Block]:
    """All fenced blocks of README and docs."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(path.relative_to(ROOT).as_posix(), line, match[1], match[2])


def is_shell(block: Block) -> bool:
    """Whether a block is for the shell: it says so, or a line of it starts with a program."""
    if block.language:
        return block.language in ("sh", "bash", "shell", "console")
    return any(line.split(" ")[0] in PROGRAMS for line in block.content.splitlines())


def calls(script: str, folder: Path) -> list[list[str]]:
    """The programs that a shell script starts, with their arguments as the shell passes them."""
    programs = folder / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (programs / name).write_text(_RECORDER)
        (programs / name).chmod(0o755)
    (folder / "calls").write_bytes(b"")
    for name in ("prompts.txt", "asked.txt"):  # that a command may read from
        (folder / name).touch()
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, check=True)
    found = (folder / "calls").read_text().split("\n\0")[:-1]
    return [call.split("\0")[:-1] for call in found]


def inline_commands() -> Iterator[tuple[str, str]]:
    """Commands inside sentences of the documents, which may lack what is asked for there."""
    for path in DOCUMENTS:
        text = _FENCE.sub("", path.read_text(encoding="utf-8"))
        for match in _INLINE.finditer(text):
            yield path.relative_to(ROOT).as_posix(), match[1]


def help_examples() -> Iterator[tuple[str, str]]:
    """The examples that the commands' help shows."""
    for path in sorted((ROOT / "src" / "imprag" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                for match in re.finditer(r"^- `((?:imprag|torchrun) [^`]+)`", text, re.MULTILINE):
                    yield path.name, match[1]


# --- A folder that has everything the documents name --------------------------------------------

_COUNTRIES = (
    ("Chad", "N'Djamena", "Central African franc", 1960, "River Chari"),
    ("Mali", "Bamako", "West African franc", 1960, "River Niger"),
    ("Peru", "Lima", "Peruvian sol", 1821, "River Amazon"),
    ("Norway", "Oslo", "Norwegian krone", 1905, "River Glomma"),
    ("Ghana", "Accra", "Ghanaian cedi", 1957, "River Volta"),
    ("Fiji", "Suva", "Fijian dollar", 1970, "River Rewa"),
    ("Laos", "Vientiane", "Laotian kip", 1949, "River Mekong"),
    ("Samoa", "Apia", "Samoan tala", 1962, "River Vaisigano"),
)
_TASKS = {
    **dict.fromkeys(("factbook/qa", "factbook/qa_unseen", "factbook/two_hop"), "{capital}"),
    **dict.fromkeys(("factbook/trex", "factbook/zsre"), "{capital}"),
    "factbook/fever": "True",
    **dict.fromkeys(("factbook/aida", "wiki10k/aida"), "{country}"),
    "wiki10k/qa": "{capital}",
    **dict.fromkeys(("factbook/denoising", "wiki10k/denoising"), "{capital}"),
    **dict.fromkeys(("factbook/next_sentence", "wiki10k/next_sentence"), "{country} is large."),
}


def _passages() -> list[dict[str, Any]]:
    """Four passages of each of eight countries, the last one in fields."""
    made = []
    for n, (country, capital, currency, year, river) in enumerate(_COUNTRIES):
        texts = (
            f"The capital of {country} is {capital}, a large city on the {river}.",
            f"{country} became independent in {year}. The currency is the {currency}.",
            f"The {river} flows through {capital} and waters the farms of {country}.",
        )
        for m, text in enumerate(texts):
            made.append({"id": f"{country.lower()}-{m}", "title": country, "text": text, "page": n})
        fields = {"Capital": capital, "Independence": str(year), "Currency": currency}
        next_country = _COUNTRIES[(n + 1) % len(_COUNTRIES)][0]
        text = "\n".join(f"{label}: {value}" for label, value in fields.items())
        made.append(
            {
                "id": f"{country.lower()}-fields",
                "title": f"{country}, Government",
                "text": f"{text}\nNeighbours: many people travel to {next_country} instead.",
                "meta": {"section": "Government", "fields": [*fields, "Neighbours"]},
            }
        )
    return made


def _examples(task: str, answer: str) -> list[dict[str, Any]]:
    rows = []
    for n, (country, capital, *_) in enumerate(_COUNTRIES):
        asked = f"what is the capital of {country}?"
        if task.endswith("aida"):
            asked = f"The capital of [START] {country} [END] is large."
        proof = [country]
        if task.endswith("two_hop"):
            proof.insert(0, _COUNTRIES[n - 1][0])
        rows.append(
            {
                "id": f"{task}-{n}",
                "task": task,
                "input": asked,
                "output": [
                    {
                        "answer": answer.format(country=country, capital=capital),
                        "provenance": [
                            {"passage_id": f"{one.lower()}-0", "title": one} for one in proof
                        ],
                    }
                ],
                "meta": {"country": country, "relation": "capital"},
            }
        )
    return rows


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_benchmark(folder: Path) -> dict[str, Any]:
    """A tiny benchmark in the form of the factbook's; its Wikipedia questions have no test."""
    tasks: dict[str, Any] = {}
    for name, answer in _TASKS.items():
        splits = ("train", "dev") if name == "wiki10k/qa" else ("train", "dev", "test")
        tasks[name] = {"splits": {}}
        for split in splits:
            file = f"{name}/{split}.jsonl"
            _write_lines(folder / file, _examples(name, answer))
            entry = {"file": file, "examples": len(_COUNTRIES), "sha256": sha256(folder / file)}
            tasks[name]["splits"][split] = entry
    manifest = {
        "name": "factbook",
        "version": 2,
        "seed": 0,
        "corpus": {"name": "default"},
        "splits": {"countries": {"train": [], "dev": [], "test": []}, "articles": {}},
        "tasks": tasks,
    }
    write_json(folder / "benchmark.json", manifest)
    return manifest


def make_home(home: Path) -> None:
    """Models, indexes, corpora, questions and runs under the names that the documents use."""
    home.mkdir()
    (home / "configs").symlink_to(ROOT / "configs")
    (home / "benchmarks").symlink_to(ROOT / "benchmarks")
    (home / "examples").symlink_to(ROOT / "examples")
    lm, tokenizer = tiny_lm(), tiny_tokenizer()
    lm.config.max_position_embeddings = 2**16
    lm.save_pretrained(home / "lm")
    tokenizer.save_pretrained(home / "lm")
    config = ImpRAGConfig(
        base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16, attention_score_bias=2.0
    )
    model = ImpRAGModel(lm, config)
    save_pretrained(model, tokenizer, home / "my-model")

    passages = _passages()
    for name in ("passages.jsonl", "dev-passages.jsonl", "my-notes.jsonl"):
        _write_lines(home / name, passages)
    more = [{**passage, "id": f"p{n}"} for n, passage in enumerate(passages[:3], 17)]
    _write_lines(home / "more.jsonl", more)
    corpus = Corpus.build(read_passages(home / "passages.jsonl"), home / "my-corpus")
    encoder = PassageEncoder(model, tokenizer)
    write_embeddings(corpus, encoder, home / "my-model" / EMBEDDINGS)
    IndexFolder.build(corpus, encoder, home / "my-index", progress=False)
    build_kv_cache(corpus, model, tokenizer, home / "my-kv", codec="int8", progress=False)
    for name in ("INDEX", "wiki-index", "default-index", "default-and-wikipedia"):
        shutil.copytree(home / "my-index", home / name)

    write_benchmark(home / "factbook-bench")
    questions = _examples("factbook/qa", "{capital}")
    for name in ("questions.jsonl", "trex-dev.jsonl", "trex-dev-kilt.jsonl"):
        task = "trex" if name.startswith("trex") else "nq"
        _write_lines(home / name, [{**row, "task": task} for row in questions])
    _write_lines(home / "my-questions.jsonl", [{**row, "task": "nq"} for row in questions])
    _write_lines(
        home / "squad" / "questions.jsonl", [{**row, "task": "squad"} for row in questions]
    )
    _write_lines(home / "squad" / "passages.jsonl", passages)
    _write_lines(home / "each-hop.jsonl", [{**row, "task": "question"} for row in questions])
    _write_lines(
        home / "NQ-open.dev.jsonl",
        [{"question": row["input"], "answer": [row["output"][0]["answer"]]} for row in questions],
    )
    for name in ("passages.jsonl", "questions.jsonl", "wiki.jsonl"):
        source = home / ("passages.jsonl" if name == "wiki.jsonl" else name)
        subprocess.run(["gzip", "-kc", source], stdout=(home / f"{name}.gz").open("wb"), check=True)
    for name in ("renamed", "counterfactual-renamed", "counterfactual-squad"):
        made_up = json.dumps([passages, questions]).replace('id": "', f'id": "{name}/')
        _write_lines(home / name / "passages.jsonl", json.loads(made_up)[0])
        task = "squad" if name.endswith("squad") else "factbook/qa"
        rows = [{**row, "task": task} for row in json.loads(made_up)[1]]
        _write_lines(home / name / "questions.jsonl", rows)
    for name in ("factbook", "squad", "renamed", "counterfactual-renamed", "counterfactual-squad"):
        rows = [{**row, "task": "verification"} for row in questions]
        _write_lines(home / f"verification-{name}.jsonl", rows)
    articles = []
    for country, capital, *_ in _COUNTRIES:
        answer = {"text": capital, "answer_start": 0}
        asked = [{"question": "where?", "id": country, "answers": [answer]}]
        context = f"{capital} lies in {country}."
        articles.append({"title": capital, "paragraphs": [{"context": context, "qas": asked}]})
    write_json(home / "train-v1.1.json", {"data": articles})
    (home / "notes").mkdir()
    sentences = " ".join(passage["text"] for passage in passages)
    (home / "notes" / "intro.md").write_text(f"# Intro\n\n{4 * sentences}\n")
    for name in ("asked.txt", "prompts.txt"):
        (home / name).write_text("Q: what is the capital of Chad? A:\nQ: who? A:\n")
    shutil.copytree(home / "my-model", home / "runs" / "shipped")
    names = (
        "factbook",
        "t25",
        "distilled",
        "warmed",
        "default",
        "broad",
        "marks",
        "two-hop",
        "two-hop-reader",
    )
    for name in (*names, "ra-it"):
        shutil.copytree(home / "my-model", home / "runs" / name / "model")
    Baseline("ra-it", "bm25").save(home / "runs" / "ra-it" / "model")
